"""The benchmarks of cluster2: load clients, probes of process trees, and the figures that they give.

Run `python -m bench --help` in the root of the checkout. This file imports nothing, because the applications under
test live in this package, too.
"""
