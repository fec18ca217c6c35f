"""The pure parts of the benchmarks: their parsers and summaries."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from bench import proc
from bench.apps import compute
from bench.balance import Sample
from bench.client import Target
from bench.control import read_answer, read_status
from bench.errors import BenchError
from bench.http import Garbage, Response, parse, request
from bench.report import Figure, Mark, against, at_most, load, ratio, save, table
from bench.rounds import Series, compare
from bench.servers import free
from bench.stats import Latencies, median_ratio, middle, quantile, spread
from bench.suites.plan import Plan, rate
from bench.suites.shares import share_after
from bench.wrk import read_report

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello"

WRK = """Running 1s test @ http://127.0.0.1:21000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.00ms    1.00ms  10.00ms   90.00%
  20000 requests in 2.00s, 2.00MB read
{more}Requests/sec:  10000.00
"""


# Statistics.


def test_a_quantile_is_a_sample() -> None:
    """The quantile of a share is the sample at that position. The ends are the smallest and the largest sample."""
    ordered = [float(number) for number in range(101)]
    assert [quantile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.0, 50.0, 99.0, 100.0]
    assert quantile([7.0], 0.99) == 7.0


def test_no_samples_have_no_quantile() -> None:
    """A quantile without samples is an error, and latencies without samples have an empty summary."""
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)
    assert Latencies.of([]) == Latencies(0)
    assert str(Latencies.of([])) == "nothing measured"


def test_latencies_are_milliseconds() -> None:
    """Seconds in any order go in, milliseconds come out."""
    found = Latencies.of([0.003, 0.001, 0.002])
    assert (found.count, found.p50, found.max) == (3, 2.0, 3.0)


def test_ratios_are_taken_by_pairs() -> None:
    """A disturbance of a whole round affects both of a pair, and leaves their ratio unchanged."""
    assert median_ratio([9.0, 90.0, 9.0], [10.0, 100.0, 10.0]) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="argument 2"):
        median_ratio([1.0], [1.0, 2.0])


def test_what_was_not_measured_does_not_count() -> None:
    """The median is that of the measured values. Without any there is none."""
    assert middle([None, 3.0, 1.0, 2.0]) == 2.0
    assert middle([None]) is None
    assert spread([9.0, 10.0, 12.0]) == pytest.approx(0.3)


def test_utilisation_gives_the_rate() -> None:
    """One request in ten that holds one of four workers for 30 ms: 800 a second are 60 %."""
    assert rate(0.6, 0.03, 0.1, 4) == pytest.approx(800)


# HTTP.


def test_a_response_is_taken_when_it_is_whole() -> None:
    """There is no response until the last byte of the body has arrived. Later bytes are left."""
    assert all(parse(OK[:length]) is None for length in range(len(OK)))
    response, taken = parse(OK + b"HTTP") or pytest.fail("no response")
    assert (response.status, response.body, taken, response.closing) == (200, b"hello", len(OK), False)
    assert response.headers[b"content-type"] == b"text/plain"


def test_a_chunked_response_is_put_together() -> None:
    """The chunks of a body are joined, whatever pieces they came in."""
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
    assert all(parse(data[:length]) is None for length in range(len(data)))
    response, taken = parse(data) or pytest.fail("no response")
    assert (response.body, taken) == (b"hello", len(data))


def test_a_response_without_length_ends_with_the_connection() -> None:
    """Such a response is complete when the server closes, and announces that the connection ends."""
    data = b"HTTP/1.1 200 OK\r\n\r\nhello"
    assert parse(data) is None
    response, _ = parse(data, ended=True) or pytest.fail("no response")
    assert (response.body, response.closing) == (b"hello", True)


def test_an_interim_response_is_skipped() -> None:
    """100 Continue isn't the response. The next one is."""
    response, taken = parse(b"HTTP/1.1 100 Continue\r\n\r\n" + OK) or pytest.fail("no response")
    assert (response.status, taken) == (200, len(OK) + 25)


def test_no_body_is_waited_for_where_there_is_none() -> None:
    """204 ends with its head."""
    head = b"HTTP/1.1 204 No Content\r\n\r\n"
    assert parse(head) == (Response(204, {}, b""), len(head))


def test_an_announced_close_is_known() -> None:
    """`Connection: close` in a response, in upper or lower case, announces that the connection ends."""
    response, _ = parse(OK.replace(b"Content-Type: text/plain", b"CONNECTION: Close")) or pytest.fail("no response")
    assert response.closing


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 what\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_garbage_is_told(data: bytes) -> None:
    """Bytes that can't become a response are an error, and don't wait for more."""
    with pytest.raises(Garbage):
        parse(data)


def test_a_request_says_when_it_is_the_last() -> None:
    """With a connection for each request, the request asks for the close."""
    assert request("/x", "h") == b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
    assert b"\r\nConnection: close\r\n" in request("/", "h", close=True)


def test_a_target_is_read_from_its_url() -> None:
    """Host, port, path and query; anything but http is refused."""
    target = Target.of("http://127.0.0.1:21000/slow?x=1")
    assert (target.host, target.port, target.path) == ("127.0.0.1", 21000, "/slow?x=1")
    assert target.at("/").url == "http://127.0.0.1:21000/"
    with pytest.raises(BenchError, match="not a URL"):
        Target.of("ftp://x/")


# wrk.


def test_the_report_of_wrk_is_read() -> None:
    """Requests, seconds, and no errors where it reports none."""
    report = read_report(WRK.format(more=""))
    assert (report.requests, report.seconds, report.errors, report.rate) == (20000, 2.0, 0, 10000.0)


def test_the_errors_of_wrk_are_counted() -> None:
    """Broken connections and bad statuses are errors alike."""
    more = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    assert read_report(WRK.format(more=more)).errors == 15


def test_a_long_run_of_wrk_is_read() -> None:
    """wrk reports minutes as minutes."""
    assert read_report("  6000 requests in 1.50m, 1.00MB read\n").seconds == 90.0
    with pytest.raises(BenchError, match="no total"):
        read_report("unable to connect to 127.0.0.1:1 Connection refused")


# Process trees.


def test_a_name_with_parentheses_does_not_shift_the_fields() -> None:
    """The fields of /proc/PID/stat are counted from the last parenthesis."""
    tail = "S 7 7 7 0 -1 0 0 0 0 0 10 20 300 100 20 0 1 0 4711 0 0"
    found = proc.read_stat(f"42 (a) b (c) {tail}")
    assert (found.pid, found.state, found.parent, found.started) == (42, "S", 7, 4711)
    assert found.reaped == pytest.approx(400 * proc.TICK)


def test_sizes_are_bytes() -> None:
    """`Name: 12 kB` is 12,288 bytes. Other lines are skipped."""
    assert proc.read_sizes("00-ff ---p 0 00:00 0 [rollup]\nPss:   12 kB\nThreads: 3\n") == {"Pss": 12288}


def test_the_clock_of_a_process_counts_its_work() -> None:
    """The CPU time of this process, read as that of another one, grows when it computes."""
    before = proc.cpu(os.getpid())
    compute(0.01)
    assert 0.01 <= proc.cpu(os.getpid()) - before < time.process_time()


def test_the_work_of_a_child_that_has_ended_counts() -> None:
    """A child's CPU time is part of the tree's while it lives, and after it was reaped."""
    before = proc.tree_cpu(os.getpid())
    child = os.fork()
    if not child:
        compute(0.05)
        os._exit(0)
    os.waitpid(child, 0)
    assert proc.tree_cpu(os.getpid()) - before >= 0.04  # ended children are counted in ticks


def test_a_process_that_is_gone_has_nothing() -> None:
    """A process that doesn't exist has no fields, no CPU, no memory and no tree."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert (proc.stat(child), proc.cpu(child), proc.pss(child), proc.rss(child), proc.tree(child)) == (
        None,
        0,
        0,
        0,
        [],
    )


def test_a_tree_begins_with_its_root() -> None:
    """This process is in its own tree, alive, with memory."""
    found = proc.tree(os.getpid())
    assert found[0].pid == os.getpid()
    assert proc.alive(found[0])
    assert proc.tree_pss(os.getpid()) >= proc.pss(os.getpid()) * 0.5 > 0


def test_a_port_is_free_or_not() -> None:
    """A port with a listener is refused. Without the listener it is free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not free(port)
    assert free(port)


# The master's status.


def test_the_status_of_the_master_is_read() -> None:
    """The status has workers by pid, the ready ones, and the keeper, if there is one."""
    workers = [{"pid": 7, "state": "ready"}, {"pid": 8, "state": "draining"}]
    line = json.dumps({"ok": True, "result": {"workers": workers, "keeper": {"pid": 9}}}).encode()
    found = read_status(read_answer(line))
    assert (found.ready, found.workers[8], found.keeper) == (frozenset({7}), "draining", 9)
    assert read_status({"workers": []}).keeper is None


def test_a_refusal_is_an_error() -> None:
    """The master's message is the error's."""
    with pytest.raises(BenchError, match="unknown verb"):
        read_answer(b'{"ok": false, "error": {"message": "unknown verb"}}')


# Balance.


def test_workers_without_connections_count() -> None:
    """A worker without a connection appears in no response, but counts in the mean."""
    sample = Sample(1.0, {7: 3, 8: 1})
    assert sample.row(4) == [3, 1, 0, 0]
    assert (sample.max_over_mean(4), sample.gap(4), sample.max_over_mean(2)) == (3.0, 3, 1.5)
    assert Sample(0.1, {}).max_over_mean(4) == 0.0


def test_a_newcomer_has_its_share_from_some_moment_on() -> None:
    """The time is that from the worker's start to the first sample in which it has 90 % of the mean."""
    samples = [Sample(1.0, {1: 10, 2: 10}), Sample(2.0, {1: 8, 2: 8, 3: 4}), Sample(2.5, {1: 7, 2: 7, 3: 6})]
    assert share_after(samples, 1.5, 3) == 1.0
    assert share_after(samples[:2], 1.5, 3) is None


# Reports.


def test_a_mark_is_met_at_its_bound() -> None:
    """The bounds are inclusive. A value that wasn't measured is neither met nor missed."""
    assert at_most(50, 50.0, "ms").met is True
    assert at_most(50, 50.1, "ms").met is False
    assert against(0.97, {"cluster2": 97.0, "uvicorn": 100.0}, "uvicorn", at_least=True).met is True
    assert against(0.95, {"cluster2": None, "uvicorn": 100.0}, "uvicorn").met is None
    assert str(Mark("≤ 1 ms", 2.0, 1.0)) == "≤ 1 ms: 2, **missed**"


def test_a_ratio_needs_both() -> None:
    """There is no ratio without both values, or with a zero of the other server."""
    assert ratio({"cluster2": 1.0, "uvicorn": 2.0}, "uvicorn") == 0.5
    assert ratio({"cluster2": 1.0}, "uvicorn") is None
    assert ratio({"cluster2": 1.0, "uvicorn": 0.0}, "uvicorn") is None


def test_the_table_has_a_column_for_each_server() -> None:
    """cluster2 is the first column. A value that wasn't measured is a dash."""
    figures = [Figure("a", "ms", {"uvicorn": 1.234, "cluster2": None}, [at_most(1, None, "ms")])]
    assert table(figures).splitlines() == [
        "|  | cluster2 | uvicorn | mark |",
        "| --- | --- | --- | --- |",
        "| a, ms | – | 1.23 | ≤ 1 ms: not measured |",
    ]


def test_figures_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of results gives an equal table. Details that are measurements are kept as plain data."""
    monkeypatch.setattr("bench.report.RESULTS", tmp_path / "results")
    figures = [Figure("a", "ms", {"cluster2": 1.0}, [at_most(1, 1.0, "ms")], {"cluster2": Latencies.of([0.001])})]
    again = load(save("some", figures))
    assert table(again) == table(figures)
    assert again[0].details["cluster2"]["p50"] == 1.0


def test_servers_are_compared_with_the_first() -> None:
    """Each server has medians, and ratios to the first by pairs. A server without values has neither."""
    found = {"uvicorn": Series([100.0, 50.0], [10.0, 20.0]), "cluster2": Series([110.0, 55.0], [9.0, 18.0], 3)}
    cpu = compare({**found, "granian": Series()}, cpu=True)
    assert (cpu.medians, cpu.ratios) == ({"uvicorn": 15.0, "cluster2": 13.5}, {"uvicorn": 1.0, "cluster2": 0.9})
    assert compare(found, cpu=False).ratios["cluster2"] == pytest.approx(1.1)
    assert cpu.errors["cluster2"] == 3


def test_a_plan_takes_the_servers_that_are_wanted() -> None:
    """A plan has a suite's servers, in its order, without those that the command line left out."""
    plan = Plan(servers=("cluster2", "uwsgi"), quick=True)
    assert plan.pick("uvicorn", "uwsgi", "cluster2") == ["uwsgi", "cluster2"]
    assert (plan.times(7, 2), Plan(passes=3).times(7), plan.size(8, 2)) == (2, 3, 2)
