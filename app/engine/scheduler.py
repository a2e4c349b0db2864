"""Chooses which sequences the model thread computes next. Knows tokens and requests, but neither torch nor models.

It is work-conserving: `take` never waits on a timer, but returns as soon as anything is queued, with up to `max_batch_tokens`
tokens to compute. A token that sequences share counts once, a cached one not at all. Requests take turns, oldest first, so
that small and large ones do not starve each other. Each job that is taken pulls in queued ones with the same prefix, which
cost only their other tokens. The queue is bounded in tokens; further jobs wait for room in the order of their arrival.
"""

import threading
from bisect import bisect_left, insort
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter

from app.engine.batch import Batch
from app.engine.prefix_tree import TOKEN_BYTES, TreeSize, num_common_tokens
from app.engine.sequence import TokenSequence

MIN_SHARED_TOKENS = 16
MIN_SHARED_FRACTION = 0.25
"""The shortest shared prefix for which a queued sequence is pulled in; a shorter one saves little and delays others."""


class Ticket:
    """A request, as far as the queue knows it. A cancelled one needs no results."""

    def __init__(self) -> None:
        self.cancelled = False


@dataclass(eq=False, slots=True)
class Job:
    """One sequence to score with some models of one device. `slot` is its index in the request."""

    ticket: Ticket
    slot: int
    sequence: TokenSequence
    models: tuple[str, ...]
    vocabulary: str = ""  # of its token ids; a batch has jobs of one vocabulary
    token_scores: bool = False
    arrival: int = 0
    is_queued: bool = False
    queued_at: float = 0.0  # by time.perf_counter
    taken_at: float = 0.0  # by time.perf_counter


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """Jobs taken from the queue together, and the batch of their sequences, in the same order."""

    jobs: Sequence[Job]
    batch: Batch

    def part(self, indices: Sequence[int]) -> "ScheduledBatch":
        """The jobs at `indices`, in that order. Returns itself if these are all, in order."""
        if [*indices] == [*range(len(self.jobs))]:
            return self
        return ScheduledBatch([self.jobs[i] for i in indices], self.batch.part(indices))


class Draft:
    """A batch that is being filled: its jobs in the order of choice, each with the number of tokens that it adds."""

    def __init__(self, max_batch_tokens: int, num_cached_tokens: Callable[[Job], int]) -> None:
        self.jobs: dict[Job, int] = {}
        self._max_batch_tokens = max_batch_tokens
        self._num_cached_tokens = num_cached_tokens
        self._tree = TreeSize()
        self._num_tokens = 0  # to be computed

    def add(self, job: Job) -> bool:
        """Adds the job if it is the first or fits the budget. Returns whether it did."""
        key = job.sequence.key
        num_new = self._tree.cost(key)
        cost = min(num_new, job.sequence.num_tokens - self._num_cached_tokens(job))
        if self.jobs and self._num_tokens + cost > self._max_batch_tokens:
            return False
        self.jobs[job] = self._tree.add(key, num_new)
        self._num_tokens += cost
        return True


def nothing_cached(_job: Job) -> int:
    return 0


class Scheduler:
    """A bounded queue between the tokenizer and one model thread. Thread-safe.

    `num_cached_tokens` returns how many first tokens of a job are in its models' prefix caches; `take` calls it.
    """

    def __init__(
        self,
        max_batch_tokens: int,
        max_queue_tokens: int,
        num_cached_tokens: Callable[[Job], int] = nothing_cached,
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_tokens = max_queue_tokens
        self._num_cached_tokens = num_cached_tokens
        self.num_queued_tokens = 0
        self._num_queued = 0
        self._changed = threading.Condition()
        self._closed = False
        self._arrivals = count()
        self._requests: dict[tuple[Ticket, str], deque[Job]] = {}  # by vocabulary, in the order of arrival
        self._by_prefix: dict[str, list[tuple[bytes, int, Job]]] = defaultdict(list)  # a vocabulary's jobs, by key
        self._waiting: deque[Job] = deque()  # for room in the queue
        self._num_discarded = 0  # jobs in `_waiting` whose request was discarded
        self._num_waiting: Counter[Ticket] = Counter()
        self._num_waiting_tokens: Counter[Ticket] = Counter()

    def submit(self, jobs: list[Job]) -> bool:
        """Queues the jobs. Once the queue is closed, it queues none and returns False."""
        with self._changed:
            if self._closed:
                return False
            now = perf_counter()
            for job in jobs:
                if job.ticket.cancelled:  # perhaps it was discarded already
                    continue
                job.arrival = next(self._arrivals)
                job.queued_at = now
                if not self._waiting and self._has_room_for(job):
                    self._enqueue(job)
                else:
                    self._waiting.append(job)
                    self._num_waiting[job.ticket] += 1
                    self._num_waiting_tokens[job.ticket] += job.sequence.num_tokens
            self._admit()
            self._changed.notify()
            return True

    def take(self) -> ScheduledBatch | None:
        """The next batch, oldest arrival first. Blocks until there is one; None once the queue is closed."""
        with self._changed:
            while not (taken := self._take()):
                if self._closed:
                    return None
                self._changed.wait()
        return self._batch_of(taken)

    def take_full(self) -> ScheduledBatch | None:
        """The next batch if enough is queued to fill it, else None. Never blocks."""
        with self._changed:
            if self.num_queued_tokens < self.max_batch_tokens:
                return None
            taken = self._take()
        return self._batch_of(taken) if taken else None

    def _batch_of(self, taken: dict[Job, int]) -> ScheduledBatch:
        jobs = sorted(taken, key=lambda job: job.arrival)
        now = perf_counter()
        for job in jobs:
            job.taken_at = now
        costs = list(taken.values()) if jobs == list(taken) else None  # else a shared token may count for another job
        return ScheduledBatch(jobs, Batch([job.sequence for job in jobs], [job.token_scores for job in jobs], costs))

    def discard(self, tickets: Collection[Ticket]) -> None:
        """Removes the jobs of these requests, which must be cancelled, from the queue."""
        with self._changed:
            for ticket in tickets:
                for vocabulary in self._by_prefix:
                    for job in self._requests.pop((ticket, vocabulary), ()):
                        if job.is_queued:
                            self._dequeue(job)
                self._num_discarded += self._num_waiting.pop(ticket, 0)
                self._num_waiting_tokens.pop(ticket, None)
            if self._num_discarded > len(self._waiting) / 2:  # seldom, because this goes through all waiting jobs
                self._waiting = deque(job for job in self._waiting if job.ticket in self._num_waiting)
                self._num_discarded = 0
            self._admit()

    def close(self) -> list[Job]:
        """Ends every `take`. Returns the jobs that are left."""
        with self._changed:
            self._closed = True
            left = [job for queue in self._by_prefix.values() for _, _, job in queue] + list(self._waiting)
            self._requests.clear()
            self._by_prefix.clear()
            for waiting in (self._waiting, self._num_waiting, self._num_waiting_tokens):
                waiting.clear()
            self._num_queued = self.num_queued_tokens = self._num_discarded = 0
            self._changed.notify_all()
            return left

    @property
    def num_waiting_requests(self) -> int:
        """The number of requests with jobs that wait for room in the queue."""
        return len(self._num_waiting)

    @property
    def num_jobs(self) -> int:
        """The number of jobs not taken yet, including those that wait for room."""
        return self._num_queued + len(self._waiting) - self._num_discarded

    @property
    def num_tokens(self) -> int:
        """The number of tokens of these jobs; a shared token counts once per job."""
        return self.num_queued_tokens + self._num_waiting_tokens.total()

    def _admit(self) -> None:
        """Moves waiting jobs into the queue while there is room, in order. An empty queue takes a job of any size."""
        while self._waiting:
            job = self._waiting[0]
            if job.ticket not in self._num_waiting:
                self._waiting.popleft()
                self._num_discarded -= 1
                continue
            if not self._has_room_for(job):
                return
            self._waiting.popleft()
            self._num_waiting_tokens[job.ticket] -= job.sequence.num_tokens
            self._num_waiting[job.ticket] -= 1
            if not self._num_waiting[job.ticket]:
                del self._num_waiting[job.ticket], self._num_waiting_tokens[job.ticket]
            if not job.ticket.cancelled:
                self._enqueue(job)

    def _has_room_for(self, job: Job) -> bool:
        num_tokens = self.num_queued_tokens
        return not num_tokens or num_tokens + job.sequence.num_tokens <= self.max_queue_tokens

    def _enqueue(self, job: Job) -> None:
        job.is_queued = True
        self._num_queued += 1
        self.num_queued_tokens += job.sequence.num_tokens
        self._requests.setdefault((job.ticket, job.vocabulary), deque()).append(job)
        insort(self._by_prefix[job.vocabulary], (job.sequence.key, job.arrival, job))

    def _take(self) -> dict[Job, int]:
        """The jobs of the next batch in the order of choice, each with the number of tokens that it adds."""
        self._drop_cancelled()
        draft = Draft(self.max_batch_tokens, self._num_cached_tokens)
        for job in self._in_turns():
            if not draft.add(job):
                break
            self._pull_in(job, self._dequeue(job), draft)
        self._admit()
        return draft.jobs

    def _in_turns(self) -> Iterator[Job]:
        """Yields one job of each request in turn until none is left, all of the oldest job's vocabulary.

        The caller must dequeue each job before it takes the next.
        """
        chosen: str | None = None
        rotation = deque(self._requests.items())
        while rotation:
            (ticket, vocabulary), jobs = turn = rotation.popleft()
            if chosen not in {None, vocabulary}:
                continue
            while jobs and not jobs[0].is_queued:  # taken already, or pulled in by another job
                jobs.popleft()
            if jobs:
                chosen = vocabulary
                yield jobs[0]
                rotation.append(turn)
            else:
                del self._requests[ticket, vocabulary]

    def _pull_in(self, anchor: Job, index: int, draft: Draft) -> None:
        """Adds queued jobs that share a prefix with the anchor, the longest shared prefix first, while the budget lasts."""
        queue, key = self._by_prefix[anchor.vocabulary], anchor.sequence.key
        start = key[: MIN_SHARED_TOKENS * TOKEN_BYTES]  # compared first, because that is cheaper than counting
        after, before = index, index - 1  # the anchor was at `index` and has been removed
        while True:
            neighbours = [
                (num_common_tokens(key, queue[i][0]), i)
                for i in (before, after)
                if 0 <= i < len(queue) and queue[i][0].startswith(start)
            ]
            if not neighbours:
                return
            shared, i = max(neighbours)
            job = queue[i][2]
            if shared < max(MIN_SHARED_TOKENS, MIN_SHARED_FRACTION * job.sequence.num_tokens):
                return
            if not draft.add(job):
                return
            self._dequeue(job)
            before -= i == before

    def _dequeue(self, job: Job) -> int:
        """Removes a job from the queue. Returns the index that it had in `_by_prefix`."""
        queue = self._by_prefix[job.vocabulary]
        index = bisect_left(queue, (job.sequence.key, job.arrival, job))
        del queue[index]
        job.is_queued = False
        self._num_queued -= 1
        self.num_queued_tokens -= job.sequence.num_tokens
        return index

    def _drop_cancelled(self) -> None:
        for key in [key for key in self._requests if key[0].cancelled]:
            for job in self._requests.pop(key):
                if job.is_queued:
                    self._dequeue(job)
        self._admit()
