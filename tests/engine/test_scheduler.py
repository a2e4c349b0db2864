import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.scheduler import Job, Scheduler, Ticket
from app.engine.sequence import Sequence


def job(ticket: Ticket, *token_ids: int, vocabulary: str = "") -> Job:
    return Job(ticket, 0, Sequence.of(list(token_ids)), ("helpfulness",), vocabulary)


def run(start: int, n: int) -> list[int]:
    return list(range(start, start + n))


def taken(scheduler: Scheduler) -> list[list[Job]]:
    """All batches until the queue is empty."""
    batches = []
    while scheduler.num_queued_tokens:
        batches.append(scheduler.take())
    return batches


def test_a_batch_holds_the_budget_in_tree_tokens() -> None:
    scheduler = Scheduler(max_batch_tokens=100, max_queue_tokens=10_000)
    prompt = run(0, 60)
    scheduler.submit([job(Ticket(), *prompt, *run(1000 * i, 10)) for i in range(1, 7)])
    assert [len(batch) for batch in taken(scheduler)] == [4, 2]  # 60 + 4 * 10 tokens, then 60 + 2 * 10


def test_a_taken_job_pulls_in_queued_ones_that_share_its_prefix() -> None:
    scheduler = Scheduler(max_batch_tokens=100, max_queue_tokens=10_000)
    prompt, other = run(0, 50), run(500, 60)
    first, second = job(Ticket(), *prompt, 1001), job(Ticket(), *other)
    third, short = job(Ticket(), *prompt, 1002), job(Ticket(), *run(700, 3))
    scheduler.submit([first, second, third, short])
    assert taken(scheduler) == [[first, third], [second, short]]
    assert [j.num_new_tokens for j in (first, second, third, short)] == [51, 60, 1, 3]


def test_a_shared_token_counts_for_the_oldest() -> None:
    scheduler = Scheduler(max_batch_tokens=1000, max_queue_tokens=10_000)
    prompt = run(0, 40)
    first, middle, last = job(Ticket(), *prompt, 7), job(Ticket(), *prompt[:20], 8), job(Ticket(), *prompt, 9)
    scheduler.submit([first, middle, last])
    assert scheduler.take() == [first, middle, last]
    assert [j.num_new_tokens for j in (first, middle, last)] == [41, 1, 1]


def test_a_job_over_the_budget_runs_alone() -> None:
    scheduler = Scheduler(max_batch_tokens=10, max_queue_tokens=20)
    small, huge, after = job(Ticket(), 1), job(Ticket(), *run(100, 500)), job(Ticket(), 2)
    scheduler.submit([small, huge, after])
    assert taken(scheduler) == [[small], [huge], [after]]


def test_requests_take_turns_so_that_a_large_one_starves_no_small_one() -> None:
    scheduler = Scheduler(max_batch_tokens=40, max_queue_tokens=100_000)
    large = Ticket()
    scheduler.submit([job(large, *run(1000 * i, 10)) for i in range(1, 101)])
    small = [job(Ticket(), *run(500_000 + 1000 * i, 10)) for i in range(3)]
    scheduler.submit(small)
    assert set(small) < set(scheduler.take())


def test_the_oldest_request_is_in_every_batch_whatever_is_pulled_in() -> None:
    scheduler = Scheduler(max_batch_tokens=40, max_queue_tokens=100_000)
    oldest = Ticket()
    scheduler.submit([job(oldest, *run(1000 * i, 30)) for i in range(1, 4)])
    scheduler.submit([job(Ticket(), *run(0, 20), i) for i in range(900, 990)])
    assert all(any(j.ticket is oldest for j in scheduler.take()) for _ in range(3))


def test_a_batch_has_token_ids_of_one_vocabulary() -> None:
    scheduler = Scheduler(max_batch_tokens=100, max_queue_tokens=10_000)
    ticket = Ticket()
    jobs = [job(ticket, 1, 2, 3, vocabulary=name) for name in ("a", "b", "a", "b")]
    scheduler.submit(jobs)
    batches = taken(scheduler)
    assert all(len({j.vocabulary for j in batch}) == 1 for batch in batches)
    assert sorted(map(id, jobs)) == sorted(id(j) for batch in batches for j in batch)
    assert sum(j.num_new_tokens for j in jobs) == 6


def test_cancelled_jobs_leave_before_they_cost_tokens() -> None:
    scheduler = Scheduler(max_batch_tokens=100, max_queue_tokens=10)
    gone, kept = Ticket(), Ticket()
    scheduler.submit([job(gone, *run(0, 8)), job(gone, *run(50, 8)), job(kept, *run(100, 8))])
    assert scheduler.num_waiting_requests == 2
    gone.cancelled = True
    assert [j.ticket for j in scheduler.take()] == [kept]
    assert scheduler.num_queued_tokens == scheduler.num_waiting_requests == 0


def test_a_full_queue_makes_jobs_wait_for_room_in_their_order() -> None:
    scheduler = Scheduler(max_batch_tokens=10, max_queue_tokens=20)
    jobs = [job(Ticket(), *run(100 * i, 10)) for i in range(5)]
    scheduler.submit(jobs)
    assert scheduler.num_queued_tokens == 20
    assert scheduler.num_waiting_requests == 3
    assert taken(scheduler) == [[j] for j in jobs]


def test_take_returns_at_once_when_something_comes_and_is_empty_once_closed() -> None:
    scheduler = Scheduler(max_batch_tokens=10, max_queue_tokens=20)
    batches: list[list[Job]] = []

    def consume() -> None:
        while batch := scheduler.take():
            batches.append(batch)

    thread = threading.Thread(target=consume)
    thread.start()
    jobs = [job(Ticket(), i) for i in range(3)]
    for each in jobs:
        scheduler.submit([each])
    while sum(map(len, batches)) < 3:
        pass
    assert scheduler.close() == []
    thread.join()
    assert [j for batch in batches for j in batch] == jobs
    assert not scheduler.submit([job(Ticket(), 1)])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_job_is_taken_exactly_once_and_no_batch_exceeds_the_budget(data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, 60))
    scheduler = Scheduler(budget, data.draw(st.integers(1, 200)))
    tokens = st.lists(st.integers(0, 2), min_size=1, max_size=40)
    requests = [
        [job(ticket, *ids) for ids in data.draw(st.lists(tokens, max_size=5))]
        for ticket in (Ticket() for _ in range(6))
    ]
    for request in requests:
        scheduler.submit(request)
    cancelled = data.draw(st.sampled_from([None, *range(6)]))
    if cancelled is not None:
        for each in requests[cancelled]:
            each.ticket.cancelled = True
    expected = {j for n, request in enumerate(requests) for j in request if n != cancelled}
    batches: list[list[Job]] = []
    while sum(map(len, batches)) < len(expected):
        batches.append(scheduler.take())
    assert expected == {j for batch in batches for j in batch}
    assert all(j.ticket.cancelled for j in scheduler.close())
    for batch in batches:
        assert len(batch) == 1 or sum(j.num_new_tokens for j in batch) <= budget
        assert [j.arrival for j in batch] == sorted(j.arrival for j in batch)
