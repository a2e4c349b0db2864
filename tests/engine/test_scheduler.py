import threading
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.scheduler import Job, ScheduledBatch, Scheduler, Ticket
from app.engine.sequence import TokenSequence


def job(ticket: Ticket, *token_ids: int, vocabulary: str = "") -> Job:
    return Job(ticket, 0, TokenSequence.of(list(token_ids)), ("helpfulness",), vocabulary)


def run(start: int, n: int) -> list[int]:
    return list(range(start, start + n))


def take(scheduler: Scheduler) -> list[Job]:
    """The jobs of the next batch; none once the queue is closed."""
    scheduled = scheduler.take()
    return [] if scheduled is None else list(scheduled.jobs)


def num_new_tokens(scheduler: Scheduler) -> dict[Job, int]:
    """By job, what all batches until the queue is empty compute for it."""
    counted: dict[Job, int] = {}
    while scheduler.num_queued_tokens:
        scheduled = scheduler.take()
        assert scheduled is not None
        assert sum(scheduled.batch.num_new_tokens) == scheduled.batch.tree.num_tokens
        counted |= zip(scheduled.jobs, scheduled.batch.num_new_tokens, strict=True)
    return counted


def taken(scheduler: Scheduler) -> list[list[Job]]:
    """All batches until the queue is empty."""
    batches = []
    while scheduler.num_queued_tokens:
        batches.append(take(scheduler))
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
    scheduler.submit([first, second, third, short])
    assert num_new_tokens(scheduler) == {first: 51, second: 60, third: 1, short: 3}


def test_a_shared_token_counts_for_the_oldest() -> None:
    scheduler = Scheduler(max_batch_tokens=1000, max_queue_tokens=10_000)
    prompt = run(0, 40)
    first, middle, last = job(Ticket(), *prompt, 7), job(Ticket(), *prompt[:20], 8), job(Ticket(), *prompt, 9)
    scheduler.submit([first, middle, last])
    assert list(num_new_tokens(scheduler).items()) == [(first, 41), (middle, 1), (last, 1)]


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
    assert set(small) < set(take(scheduler))


def test_the_oldest_request_is_in_every_batch_whatever_is_pulled_in() -> None:
    scheduler = Scheduler(max_batch_tokens=40, max_queue_tokens=100_000)
    oldest = Ticket()
    scheduler.submit([job(oldest, *run(1000 * i, 30)) for i in range(1, 4)])
    scheduler.submit([job(Ticket(), *run(0, 20), i) for i in range(900, 990)])
    assert all(any(j.ticket is oldest for j in take(scheduler)) for _ in range(3))


def test_a_batch_has_token_ids_of_one_vocabulary() -> None:
    scheduler = Scheduler(max_batch_tokens=100, max_queue_tokens=10_000)
    ticket = Ticket()
    jobs = [job(ticket, 1, 2, 3, vocabulary=name) for name in ("a", "b", "a", "b")]
    scheduler.submit(jobs)
    batches = taken(scheduler)
    assert all(len({j.vocabulary for j in batch}) == 1 for batch in batches)
    assert sorted(map(id, jobs)) == sorted(id(j) for batch in batches for j in batch)
    scheduler.submit(jobs)
    assert sum(num_new_tokens(scheduler).values()) == 6


def test_cancelled_jobs_leave_before_they_cost_tokens() -> None:
    scheduler = Scheduler(max_batch_tokens=100, max_queue_tokens=10)
    gone, kept = Ticket(), Ticket()
    scheduler.submit([job(gone, *run(0, 8)), job(gone, *run(50, 8)), job(kept, *run(100, 8))])
    assert scheduler.num_waiting_requests == 2
    gone.cancelled = True
    assert [j.ticket for j in take(scheduler)] == [kept]
    assert scheduler.num_queued_tokens == scheduler.num_waiting_requests == 0


def test_discarded_requests_leave_the_queue_and_every_count_at_once() -> None:
    scheduler = Scheduler(max_batch_tokens=10, max_queue_tokens=20)
    tickets = [Ticket() for _ in range(8)]
    jobs = [job(ticket, *run(100 * i, 10)) for i, ticket in enumerate(tickets)]
    scheduler.submit(jobs)
    assert (scheduler.num_jobs, scheduler.num_tokens, scheduler.num_waiting_requests) == (8, 80, 6)
    for ticket in (tickets[0], tickets[3], tickets[4], tickets[7]):
        ticket.cancelled = True
        scheduler.discard([ticket])
    assert (scheduler.num_jobs, scheduler.num_tokens, scheduler.num_waiting_requests) == (4, 40, 2)
    assert scheduler.submit([job(tickets[0], 1), job(tickets[3], 2)])  # tokenized too late
    assert scheduler.num_jobs == 4
    assert taken(scheduler) == [[jobs[i]] for i in (1, 2, 5, 6)]
    assert (scheduler.num_jobs, scheduler.num_tokens, scheduler.num_waiting_requests) == (0, 0, 0)


def test_what_is_discarded_is_kept_no_longer_than_others_wait() -> None:
    scheduler = Scheduler(max_batch_tokens=10, max_queue_tokens=10)
    scheduler.submit([job(Ticket(), *run(0, 10)), job(Ticket(), *run(100, 10))])
    sequences = weakref.WeakSet[Ticket]()
    for i in range(50):
        gone = Ticket()
        sequences.add(gone)
        scheduler.submit([job(gone, *run(200 + 10 * i, 10))])
        gone.cancelled = True
        scheduler.discard([gone])
        del gone
    assert len(sequences) <= 1


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
        while batch := take(scheduler):
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
    batches: list[ScheduledBatch] = []
    while sum(len(batch.jobs) for batch in batches) < len(expected):
        taken_now = scheduler.take()
        assert taken_now is not None
        batches.append(taken_now)
    assert expected == {j for batch in batches for j in batch.jobs}
    assert all(j.ticket.cancelled for j in scheduler.close())
    for batch in batches:
        assert sum(batch.batch.num_new_tokens) == batch.batch.tree.num_tokens
        assert len(batch.jobs) == 1 or batch.batch.tree.num_tokens <= budget
        assert [j.arrival for j in batch.jobs] == sorted(j.arrival for j in batch.jobs)


def test_cached_tokens_do_not_count_against_the_budget() -> None:
    prompt = [*range(10, 100)]
    scheduler = Scheduler(20, 10_000, lambda job: 90 if job.sequence.num_tokens > 90 else 0)
    jobs = [Job(Ticket(), 0, TokenSequence.of([*prompt, n, n]), ("safety",)) for n in range(200, 212)]
    scheduler.submit(jobs)
    first, second = scheduler.take(), scheduler.take()
    assert first is not None
    assert second is not None
    assert (len(first.jobs), len(second.jobs)) == (10, 2)
    assert sum(first.batch.num_new_tokens) == first.batch.tree.num_tokens == 110  # what the batch shares is as before


def test_a_batch_is_taken_ahead_only_if_more_arrivals_would_not_make_it_larger() -> None:
    scheduler = Scheduler(max_batch_tokens=100, max_queue_tokens=10_000)
    assert scheduler.take_full() is None
    first, second, cancelled = job(Ticket(), *run(0, 60)), job(Ticket(), *run(500, 50)), job(Ticket(), *run(800, 120))
    scheduler.submit([first])
    assert scheduler.take_full() is None
    scheduler.submit([second])
    scheduled = scheduler.take_full()
    assert scheduled is not None
    assert scheduled.jobs == [first]
    scheduler.submit([cancelled])
    cancelled.ticket.cancelled = second.ticket.cancelled = True
    assert scheduler.take_full() is None
