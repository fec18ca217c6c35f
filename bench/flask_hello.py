"""A Flask application that answers `hello`, so that each request includes the cost of the framework."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)
app.add_url_rule("/", "hello", lambda: "hello")
