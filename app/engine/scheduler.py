"""Which sequences the model thread computes next. Knows tokens and requests, and neither torch nor models.

Work-conserving: `take` returns as soon as anything is queued, up to `max_batch_tokens` that must be computed (a token that
sequences share counts once, one in the models' prefix cache not at all), and never waits on a timer. Requests take turns, oldest first, so that no size starves
another; each job that is taken pulls in the queued ones that share its prefix, at the cost of their own tokens only.
The queue is bounded in tokens: beyond, jobs wait for room in the order they came.
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
"""A queued sequence is pulled in for at least so long a shared prefix; less saves little and costs others their turn."""


class Ticket:
    """A request as the queue sees it: its jobs, and whether anyone still waits for them."""

    def __init__(self) -> None:
        self.cancelled = False


@dataclass(eq=False, slots=True)
class Job:
    """One sequence to be scored by some models of one device. `slot` is its index in the request."""

    ticket: Ticket
    slot: int
    sequence: TokenSequence
    models: tuple[str, ...]
    vocabulary: str = ""  # whose token ids these are; a batch has those of one
    token_scores: bool = False
    arrival: int = 0
    is_queued: bool = False
    queued_at: float = 0.0  # by perf_counter, as is
    taken_at: float = 0.0


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """The jobs that are taken from the queue together, and the batch of their sequences, in the same order."""

    jobs: Sequence[Job]
    batch: Batch

    def part(self, indices: Sequence[int]) -> "ScheduledBatch":
        """Some of the jobs, in the order of `indices`; itself where these are all, in order."""
        if [*indices] == [*range(len(self.jobs))]:
            return self
        return ScheduledBatch([self.jobs[i] for i in indices], self.batch.part(indices))


class Draft:
    """A batch in the making: its jobs in the order in which they were chosen, each with the tokens that it adds."""

    def __init__(self, max_batch_tokens: int, num_cached_tokens: Callable[[Job], int]) -> None:
        self.jobs: dict[Job, int] = {}
        self._max_batch_tokens = max_batch_tokens
        self._num_cached_tokens = num_cached_tokens
        self._tree = TreeSize()
        self._num_tokens = 0  # that must be computed

    def add(self, job: Job) -> bool:
        """Adds the job if it is the first or the budget allows it; whether it did."""
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
    """A bounded queue between the tokenizer and one model thread; every method may be called from any thread.

    `num_cached_tokens` says how many of a job's first tokens its models need not compute; `take` calls it.
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
        self._waiting: deque[Job] = deque()  # without room yet
        self._num_discarded = 0  # of them, which nobody counts any more
        self._num_waiting: Counter[Ticket] = Counter()
        self._num_waiting_tokens: Counter[Ticket] = Counter()

    def submit(self, jobs: list[Job]) -> bool:
        """Queues the jobs; False, and nothing queued, once the queue is closed."""
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
        """The next batch, oldest arrival first; blocks until there is one, and is None once the queue is closed."""
        with self._changed:
            while not (taken := self._take()):
                if self._closed:
                    return None
                self._changed.wait()
        return self._batch_of(taken)

    def take_full(self) -> ScheduledBatch | None:
        """The next batch if so much is queued that more arrivals would not make it larger, else None. Never blocks."""
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
        """Takes the jobs of these requests out of the queue at once; each must be cancelled before."""
        with self._changed:
            for ticket in tickets:
                for vocabulary in self._by_prefix:
                    for job in self._requests.pop((ticket, vocabulary), ()):
                        if job.is_queued:
                            self._dequeue(job)
                self._num_discarded += self._num_waiting.pop(ticket, 0)
                self._num_waiting_tokens.pop(ticket, None)
            if self._num_discarded > len(self._waiting) / 2:  # not for each: all that wait are looked through
                self._waiting = deque(job for job in self._waiting if job.ticket in self._num_waiting)
                self._num_discarded = 0
            self._admit()

    def close(self) -> list[Job]:
        """Ends every `take`; returns the jobs that no batch will hold any more."""
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
        """Requests with jobs that wait for room in the queue."""
        return len(self._num_waiting)

    @property
    def num_jobs(self) -> int:
        """Jobs that are not taken yet, those that wait for room included."""
        return self._num_queued + len(self._waiting) - self._num_discarded

    @property
    def num_tokens(self) -> int:
        """Their tokens, none counted as shared."""
        return self.num_queued_tokens + self._num_waiting_tokens.total()

    def _admit(self) -> None:
        """Lets jobs in while there is room, in order; one that is larger than the whole queue enters an empty one."""
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
        """The jobs of the next batch in the order in which they were chosen, each with the tokens that it adds."""
        self._drop_cancelled()
        draft = Draft(self.max_batch_tokens, self._num_cached_tokens)
        for job in self._in_turns():
            if not draft.add(job):
                break
            self._pull_in(job, self._dequeue(job), draft)
        self._admit()
        return draft.jobs

    def _in_turns(self) -> Iterator[Job]:
        """One job of each request in turn, all of the oldest one's vocabulary, until none is left.

        The caller dequeues each before it asks for the next.
        """
        chosen: str | None = None
        rotation = deque(self._requests.items())
        while rotation:
            (ticket, vocabulary), jobs = turn = rotation.popleft()
            if chosen not in {None, vocabulary}:
                continue
            while jobs and not jobs[0].is_queued:  # taken, or pulled in before its turn
                jobs.popleft()
            if jobs:
                chosen = vocabulary
                yield jobs[0]
                rotation.append(turn)
            else:
                del self._requests[ticket, vocabulary]

    def _pull_in(self, anchor: Job, index: int, draft: Draft) -> None:
        """Takes the queued neighbours of the anchor by prefix, the nearest first, while the budget lasts."""
        queue, key = self._by_prefix[anchor.vocabulary], anchor.sequence.key
        start = key[: MIN_SHARED_TOKENS * TOKEN_BYTES]  # compared first: it takes less time than to count
        after, before = index, index - 1  # what was at `index` has moved up
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
        """Takes a job out of the queue; returns the index that it had among the prefixes."""
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
