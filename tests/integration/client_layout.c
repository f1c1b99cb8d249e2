/* tests/integration/client_layout.c - prints "STRUCT size" and "STRUCT.FIELD offset" of winnow.h, for bindings that
 * write them down once more. */
#include <stdio.h>

#include <winnow.h>

#define SIZE(s)     printf("%s %zu\n", #s, sizeof(struct winnow_##s))
#define FIELD(s, f) printf("%s.%s %zu\n", #s, #f, offsetof(struct winnow_##s, f))

int main(void)
{
    SIZE(options);
    FIELD(options, keep_results);
    SIZE(image);
    SIZE(request);
    FIELD(request, stop);
    FIELD(request, idempotency_key);
    FIELD(request, logprobs);
    FIELD(request, deadline_ms);
    FIELD(request, ignore_eos);
    SIZE(usage);
    FIELD(usage, bytes_logits);
    FIELD(usage, pruning_rate);
    FIELD(usage, pruning_options);
    FIELD(usage, bytes_image);
    SIZE(chance);
    SIZE(logprobs);
    SIZE(event);
    FIELD(event, finish_reason);
    FIELD(event, usage);
    FIELD(event, choice);
    FIELD(event, logprobs);
    return 0;
}
