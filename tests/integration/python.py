"""tests/integration/python.py LAYOUT ENDPOINT PICTURE - what winnow.py does with a service; python.sh starts it."""
import gc
import sys

import winnow

layout, endpoint, picture = sys.argv[1:]


def expect(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def refused(kind, words, call):
    try:
        call()
    except kind as e:
        expect(words in str(e), f"'{words}' is not in '{e}'")
        return e
    sys.exit(f"FAILED: nobody refused it: {words}")


with open(layout) as f:
    lines = f.read().splitlines()
for line in lines:
    name, value = line.split()
    struct, _, field = name.partition(".")
    kind = getattr(winnow, "_" + struct.capitalize())
    have = getattr(kind, field).offset if field else winnow.ctypes.sizeof(kind)
    expect(have == int(value), f"{name}: {have}, and winnow.h has {value}")
expect(winnow.version(), "version")

TEXT = "What does the text say?"
with winnow.Connection(endpoint) as server:
    expect(server.status()["ready"], "status")
    job = server.submit(TEXT, [picture])
    pieces = list(job.stream(timeout=60))
    result = job.result()
    expect(len(pieces) > 1 and "".join(pieces) == result.text and result.text, f"pieces {pieces} of {result}")
    expect(result.finish_reason == "stop" and result.usage["image_tokens"] == 576 and job.id, f"{result}")

    with open(picture, "rb") as f:  # bytes, pruned, several side by side, of one request too
        data = f.read()
    jobs = [server.submit(TEXT, [data], pruning=p) for p in ("cls-topk:64", "uniform:0.75", "none")]
    kept = [job.result(timeout=60).usage["image_tokens"] for job in reversed(jobs)][::-1]
    expect(kept == [64, 144, 576], f"kept {kept}")
    answers = server.submit(TEXT, [data], n=3, temperature=0.8, seed=7).results(timeout=60)
    expect(len(answers) == 3, "three answers")
    expect(jobs[2].result().text == result.text, "the same answer")

    job = server.submit(TEXT, [data], logprobs=2)
    tokens = [p for e in job.events(60) if e.type == winnow.TEXT for p in e.logprobs]
    expect(tokens and all(len(top) == 2 and chosen.logprob <= 0 and isinstance(chosen.text, bytes)
                          for chosen, top in tokens), f"{tokens}")

    long = server.submit("Tell a story.", ignore_eos=True, max_tokens=900)
    next(long.stream(timeout=60))
    long.cancel()
    expect(long.result(timeout=60).finish_reason == "cancelled", "cancel")
    long.cancel()  # it has ended: nothing

    refused(winnow.Invalid, "METHOD:64", lambda: server.submit(TEXT, pruning="cls-topk:many"))
    refused(winnow.JobFailed, "image", lambda: server.submit(TEXT, [b"no picture"]).result(60))
    refused(winnow.JobFailed, "image", lambda: list(server.submit(TEXT, [b"no picture"]).stream(60)))
    refused(winnow.Error, "astrology", lambda: server.submit(TEXT, [data], pruning="astrology").result(60))
    refused(winnow.Timeout, "", lambda: server.submit(TEXT, [data]).result(0))
    refused(FileNotFoundError, "nowhere", lambda: server.submit(TEXT, ["/nowhere.jpg"]))
    left = server.submit(TEXT, [data])
    for event in left.events(60):
        if event.type == winnow.ACCEPTED:
            break
expect(left.id, "the job's name")
refused(winnow.Unreachable, "closed", lambda: server.submit(TEXT))

with winnow.Connection(endpoint, keep_results=True) as server:  # what the first one has left
    again = server.attach(left.id)
    expect(again.result(60).text == result.text, "attach")
    server.acknowledge(left.id)
refused(winnow.Unreachable, "", lambda: winnow.Connection("tcp://127.0.0.1:1", connect_timeout=0.3))
gc.collect()
print("python: passed")
