"""A Flask app: WSGI, in the threads of each worker.

Run it:  cluster2 run examples/flask_app.py:app --workers 2
Try it:  curl http://127.0.0.1:3000/
"""

import os

from flask import Flask

app = Flask(__name__)


@app.get("/")
def index() -> dict[str, object]:
    return {"message": "hello from Flask", "worker": os.getpid()}
