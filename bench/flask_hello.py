"""Flask answering `hello`: what the framework costs is part of every request."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)
app.add_url_rule("/", "hello", lambda: "hello")
