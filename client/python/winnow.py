"""Winnow's client library for Python: winnow.h over ctypes, and nothing else.

    import winnow

    with winnow.Connection("tcp://127.0.0.1:5599") as server:      # or "slurm:JOBID"
        job = server.submit("What is on the left?", ["picture.jpg"], pruning="cls-topk:64", max_tokens=64)
        for text in job.stream():
            print(text, end="", flush=True)
        print(job.result().usage["image_tokens"], "visual tokens")

        jobs = [server.submit("A caption.", [path]) for path in paths]   # side by side
        captions = [job.result().text for job in jobs]

A connection is used by one thread at a time. What the server or the library refuses is an exception with its words:
winnow.Error, and its subclasses. libwinnow is the one of the tree that this file was installed in, else the one that the
loader finds (LD_LIBRARY_PATH).
"""
import collections
import ctypes
import glob
import json
import os
from ctypes import POINTER, byref, c_char, c_char_p, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p

__all__ = ["Connection", "Job", "Result", "Event", "Chance", "Error", "Busy", "Timeout", "Unreachable", "Invalid",
           "JobFailed", "version"]

OK, TIMEOUT, EINVAL, EBUSY, ECONNECT, ENOMEM, EPROTO = range(7)
NONE, ACCEPTED, TEXT, DONE, BUSY, ERROR = range(6)
POSITIONS = {None: 0, "original": 1, "compact": 2}


class Error(Exception):
    """code: an enum winnow_result, or of a job that failed the server's status."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Timeout(Error):
    """Nothing happened in time; the job goes on."""


class Invalid(Error):
    """The request makes no sense."""


class Unreachable(Error):
    """No server is there, or it went away."""


class Busy(Error):
    """The server took nothing: come back after retry_ms."""

    def __init__(self, text, retry_ms=0):
        super().__init__(EBUSY, text)
        self.retry_ms = retry_ms


class JobFailed(Error):
    """The job has ended without an answer."""


# ---- winnow.h, field by field ----

class _Options(ctypes.Structure):
    _fields_ = [("server_key", c_char_p), ("client_key_file", c_char_p), ("connect_timeout_ms", c_uint32),
                ("reconnect_timeout_ms", c_uint32), ("busy_timeout_ms", c_uint32), ("keep_results", c_int)]


class _Image(ctypes.Structure):
    _fields_ = [("data", c_char_p), ("bytes", c_size_t)]


class _Request(ctypes.Structure):
    _fields_ = [("prompt", c_char_p), ("images", POINTER(_Image)), ("images_n", c_size_t), ("max_tokens", c_uint32),
                ("temperature", c_float), ("top_k", c_uint32), ("top_p", c_float), ("repetition_penalty", c_float),
                ("seed", c_uint64), ("stop", POINTER(c_char_p)), ("stop_n", c_size_t), ("pruning_method", c_char_p),
                ("pruning_keep", c_uint32), ("pruning_rate", c_float), ("idempotency_key", c_char_p), ("quiet", c_int),
                ("pruning_cap", c_uint32), ("pruning_seed", c_uint64), ("pruning_setting", c_char_p), ("n", c_uint32),
                ("logprobs", c_int), ("top_logprobs", c_uint32), ("stop_token_ids", POINTER(c_uint32)),
                ("stop_token_ids_n", c_size_t), ("deadline_ms", c_uint64), ("pruning_position", c_int),
                ("pruning_projected", c_int), ("pruning_options", c_char_p), ("ignore_eos", c_int)]


class _Usage(ctypes.Structure):
    _fields_ = ([(name, c_uint32) for name in ("prompt_tokens", "completion_tokens", "image_tokens",
                                               "image_tokens_before_pruning", "attempts")]
                + [("bytes_" + name, c_uint64) for name in ("control", "embedding", "activation", "allreduce", "logits")]
                + [(name + "_us", c_uint64) for name in ("queue", "preprocess", "encode", "prune", "transfer", "prefill",
                                                         "decode", "time_to_first_token", "total")]
                + [("pruning_method", c_char * 32), ("pruning_keep", c_uint32), ("pruning_rate", c_float),
                   ("cached_tokens", c_uint32), ("vision_cache_hit", c_uint32), ("pruning_cap", c_uint32),
                   ("pruning_position", c_int), ("pruning_projected", c_int), ("pruning_seed", c_uint64),
                   ("pruning_setting", c_char * 32), ("pruning_options", c_char * 257), ("preemptions", c_uint32),
                   ("bytes_image", c_uint64)])


class _Chance(ctypes.Structure):
    _fields_ = [("id", c_uint32), ("logprob", c_float), ("text", c_void_p), ("text_bytes", c_size_t)]


class _Logprobs(ctypes.Structure):
    _fields_ = [("chosen", _Chance), ("top", POINTER(_Chance)), ("top_n", c_size_t)]


class _Event(ctypes.Structure):
    _fields_ = [("type", c_int), ("job", c_uint64), ("job_id", c_char * 32), ("text", c_char_p),
                ("token_ids", POINTER(c_uint32)), ("token_ids_n", c_size_t), ("first_token", c_uint32),
                ("finish_reason", c_char_p), ("error_code", c_uint32), ("retry_ms", c_uint32), ("usage", _Usage),
                ("choice", c_uint32), ("logprobs", POINTER(_Logprobs))]


def _load():
    here = os.path.dirname(os.path.abspath(__file__))
    for root in (os.path.join(here, *[".."] * up) for up in (3, 4)):  # share/winnow/python, lib/python3/dist-packages
        for path in sorted(glob.glob(os.path.join(root, "lib*", "libwinnow.so.0"))
                           + glob.glob(os.path.join(root, "lib", "*", "libwinnow.so.0"))):
            return ctypes.CDLL(path)
    return ctypes.CDLL("libwinnow.so.0")


_lib = _load()
for _name, _result, *_arguments in (
        ("connect", c_int, POINTER(c_void_p), c_char_p, POINTER(_Options)),
        ("submit", c_int, c_void_p, POINTER(_Request), POINTER(c_uint64)),
        ("attach", c_int, c_void_p, c_char_p, c_uint32, POINTER(c_uint64)),
        ("next", c_int, c_void_p, POINTER(_Event), c_int),
        ("cancel", c_int, c_void_p, c_uint64),
        ("acknowledge", c_int, c_void_p, c_char_p),
        ("status_json", c_void_p, c_void_p, c_int),
        ("error", c_char_p, c_void_p),
        ("close", None, c_void_p),
        ("version", c_char_p)):
    _function = getattr(_lib, "winnow_" + _name)
    _function.restype, _function.argtypes = _result, _arguments
_free = ctypes.CDLL(None).free
_free.argtypes = [c_void_p]
_free.restype = None


def version():
    return _lib.winnow_version().decode()


def _check(code, handle):
    if code == OK:
        return
    text = _lib.winnow_error(handle).decode(errors="replace")
    if code == EBUSY:
        raise Busy(text)
    raise {TIMEOUT: Timeout, EINVAL: Invalid, ECONNECT: Unreachable}.get(code, Error)(code, text)


def _bytes(text):
    return None if text is None else os.fsencode(text)


def _ms(seconds):
    return -1 if seconds is None else max(0, int(seconds * 1000))


# ---- what comes back ----

Chance = collections.namedtuple("Chance", "id logprob text")  # text: bytes, maybe a part of a character; None: forgotten
Event = collections.namedtuple("Event", "type choice text token_ids first_token logprobs finish_reason usage code retry_ms")
Result = collections.namedtuple("Result", "text finish_reason usage")


def _chance(c):
    return Chance(c.id, c.logprob, ctypes.string_at(c.text, c.text_bytes) if c.text else None)


def _usage(u):
    values = {name: getattr(u, name) for name, _ in _Usage._fields_}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


def _event(e):
    """A copy: the library's strings are valid until its next call."""
    logprobs = None
    if e.logprobs:
        logprobs = [(_chance(p.chosen), [_chance(p.top[i]) for i in range(p.top_n)])
                    for p in (e.logprobs[i] for i in range(e.token_ids_n))]
    return Event(e.type, e.choice, (e.text or b"").decode(errors="replace"), e.token_ids[:e.token_ids_n], e.first_token,
                 logprobs, (e.finish_reason or b"").decode() or None, _usage(e.usage) if e.type == DONE else None,
                 e.error_code, e.retry_ms)


class Job:
    """One request; it goes on at the server when the connection closes, and `id` finds it again (Connection.attach)."""

    def __init__(self, connection, number, n):
        self.id = None                      # the server's name, once it has accepted; of several answers the first's
        self._connection, self._number = connection, number
        self._events = collections.deque()
        self._ends = [None] * n             # a Result, or an Error

    def _take(self, event, job_id):
        self.id = self.id or job_id or None
        if event.type == DONE:
            self._ends[event.choice] = Result(event.text, event.finish_reason, event.usage)
        elif event.type == ERROR:
            self._ends[event.choice] = JobFailed(event.code, event.text)
        elif event.type == BUSY:
            self._ends = [Busy(event.text, event.retry_ms)] * len(self._ends)
        self._events.append(event)

    def _ended(self):
        return all(self._ends)

    def events(self, timeout=None):
        """Every event, for all answers; timeout: seconds to wait for each."""
        while self._events or not self._ended():
            if not self._events:
                self._connection._pump(timeout)
                continue
            yield self._events.popleft()

    def stream(self, timeout=None):
        """The pieces of the answer as they come."""
        for event in self.events(timeout):
            if event.type == TEXT:
                yield event.text
            elif event.type in (ERROR, BUSY):
                raise self._ends[event.choice]

    def results(self, timeout=None):
        """All answers, once they are there; an answer that failed raises."""
        while not self._ended():
            self._connection._pump(timeout)
        for end in self._ends:
            if isinstance(end, Error):
                raise end
        return list(self._ends)

    def result(self, timeout=None):
        return self.results(timeout)[0]

    def cancel(self):
        """Its answers then end with finish_reason "cancelled"."""
        if not self._ended():
            _check(_lib.winnow_cancel(self._connection._open(), self._number), self._connection._handle)


class Connection:
    """Times are in seconds. key_file None: what WINNOW_KEY names, else plain text. busy_timeout: how long a request that
    finds the server full is sent again. keep_results: only acknowledge() lets the server forget a result."""

    def __init__(self, endpoint=None, *, key_file=None, server_key=None, connect_timeout=5.0, reconnect_timeout=30.0,
                 busy_timeout=0.0, keep_results=False):
        options = _Options(_bytes(server_key), _bytes(key_file), _ms(connect_timeout), _ms(reconnect_timeout),
                           _ms(busy_timeout), int(keep_results))
        handle = c_void_p()
        endpoint = endpoint or os.environ.get("WINNOW_ENDPOINT") or "tcp://127.0.0.1:5599"
        self._handle, self._jobs = None, {}
        _check(_lib.winnow_connect(byref(handle), _bytes(endpoint), byref(options)), None)
        self._handle = handle

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __del__(self):
        self.close()

    def close(self):
        if getattr(self, "_handle", None):
            _lib.winnow_close(self._handle)
        self._handle = None

    def _open(self):
        if not self._handle:
            raise Unreachable(ECONNECT, "the connection is closed")
        return self._handle

    def _pump(self, timeout):
        event = _Event()
        _check(_lib.winnow_next(self._open(), byref(event), _ms(timeout)), self._handle)
        job = self._jobs.get(event.job)
        if job:
            job._take(_event(event), event.job_id.decode())
            if job._ended():
                del self._jobs[event.job]

    def submit(self, prompt, images=(), *, max_tokens=0, temperature=0.0, top_k=0, top_p=0.0, repetition_penalty=0.0,
               seed=0, stop=(), stop_token_ids=(), n=1, logprobs=None, ignore_eos=False, deadline=None,
               idempotency_key=None, pruning=None, pruning_cap=0, pruning_seed=0, pruning_setting=None,
               pruning_position=None, pruning_projected=False, pruning_options=None):
        """images: paths, or bytes of JPEG, PNG or WebP files. pruning: "METHOD", "METHOD:64" (tokens kept) or
        "METHOD:0.5" (share removed). logprobs: of so many of the likeliest tokens beside the chosen one."""
        files = []
        for image in images:
            if not isinstance(image, (bytes, bytearray)):
                with open(image, "rb") as f:
                    image = f.read()
            files.append(bytes(image))
        method, _, budget = (pruning or "").partition(":")
        r = _Request()
        r.prompt = prompt.encode()
        r.images = (_Image * len(files))(*[_Image(f, len(f)) for f in files])
        r.images_n = len(files)
        r.max_tokens, r.temperature, r.top_k, r.top_p = max_tokens, temperature, top_k, top_p
        r.repetition_penalty, r.seed, r.n, r.ignore_eos = repetition_penalty, seed, n, int(ignore_eos)
        r.stop = (c_char_p * len(stop))(*[s.encode() for s in stop])
        r.stop_n = len(stop)
        r.stop_token_ids = (c_uint32 * len(stop_token_ids))(*stop_token_ids)
        r.stop_token_ids_n = len(stop_token_ids)
        r.logprobs, r.top_logprobs = int(logprobs is not None), logprobs or 0
        r.deadline_ms = _ms(deadline) if deadline else 0
        r.idempotency_key = _bytes(idempotency_key)
        r.pruning_method = _bytes(method) or None
        try:
            if "." in budget:
                r.pruning_rate = float(budget)
            elif budget:
                r.pruning_keep = int(budget)
            r.pruning_position = POSITIONS[pruning_position]
        except (KeyError, ValueError):
            raise Invalid(EINVAL, f"pruning '{pruning}', position '{pruning_position}': METHOD, METHOD:64 or METHOD:0.5 "
                          "and original or compact are wanted") from None
        r.pruning_cap, r.pruning_seed, r.pruning_projected = pruning_cap, pruning_seed, int(pruning_projected)
        r.pruning_setting, r.pruning_options = _bytes(pruning_setting), _bytes(pruning_options)
        number = c_uint64()
        _check(_lib.winnow_submit(self._open(), byref(r), byref(number)), self._handle)
        job = self._jobs[number.value] = Job(self, number.value, max(1, n))
        return job

    def attach(self, job_id, from_token=0):
        """A job that another connection has submitted, from that token on."""
        number = c_uint64()
        _check(_lib.winnow_attach(self._open(), _bytes(job_id), from_token, byref(number)), self._handle)
        job = self._jobs[number.value] = Job(self, number.value, 1)
        return job

    def acknowledge(self, job_id):
        _check(_lib.winnow_acknowledge(self._open(), _bytes(job_id)), self._handle)

    def status(self, timeout=5.0):
        """What `winnow status --json` prints, as a dict."""
        text = _lib.winnow_status_json(self._open(), _ms(timeout))
        if not text:
            raise Error(ECONNECT, _lib.winnow_error(self._handle).decode(errors="replace"))
        try:
            return json.loads(ctypes.string_at(text))
        finally:
            _free(text)
