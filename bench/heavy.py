"""A service of usual size: FastAPI, SQLAlchemy and NumPy, with about 70 MiB in one process, most of it imports.

`/` reads some rows and computes on them, so that a hundred thousand requests use the memory that such a service uses.
`BENCH_IMPORT_SECONDS` makes the import take that much longer, as in big applications.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI, Request, Response
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

time.sleep(float(os.environ.get("BENCH_IMPORT_SECONDS", "0")))


class Base(DeclarativeBase):
    """The declarative base of this application."""


class Item(Base):
    """A row with a few columns."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[float]


def _database() -> Engine:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Item(name=f"item {number}", price=number / 7) for number in range(100))
        session.commit()
    return engine


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Connect in each worker, not at import: a fork must not share a database connection.
    app.state.engine = _database()
    yield
    app.state.engine.dispose()


app = FastAPI(lifespan=_lifespan)
WEIGHTS = np.linspace(0.0, 1.0, 250_000)


@app.get("/")
async def total(request: Request, first: int = 1, count: int = 10) -> dict[str, float]:
    """Return the weighted sum of some prices."""
    rows = select(Item).where(Item.id.between(first, first + count - 1))
    with Session(request.app.state.engine) as session:
        prices = np.array([item.price for item in session.scalars(rows)])
    return {"total": float(prices @ WEIGHTS[: len(prices)])}


@app.get("/pid")
async def pid() -> Response:
    """Return the worker's pid."""
    return Response(str(os.getpid()), media_type="text/plain")


def warm_up() -> None:
    """Run everything once before workers are forked (`--warm-up bench.heavy:warm_up`), for work that code does only once."""
    engine = _database()
    with Session(engine) as session:
        float(np.array([item.price for item in session.scalars(select(Item))]) @ WEIGHTS[:100])
    engine.dispose()
