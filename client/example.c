/* client/example.c - asks one question about one picture. It needs winnow.h and libwinnow, nothing else:
 *     cc example.c $(pkg-config --cflags --libs winnow) -o example
 *     ./example tcp://127.0.0.1:5599 picture.jpg "What is this?" */
#include <stdio.h>
#include <stdlib.h>

#include <winnow.h>

static void *read_file(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    char *data = NULL;
    long n = -1;

    if (f && fseek(f, 0, SEEK_END) == 0) n = ftell(f);
    if (n > 0 && fseek(f, 0, SEEK_SET) == 0) data = malloc((size_t)n);
    if (data && fread(data, 1, (size_t)n, f) != (size_t)n) {
        free(data);
        data = NULL;
    }
    if (f) fclose(f);
    *bytes = data ? (size_t)n : 0;
    return data;
}

int main(int argc, char **argv)
{
    struct winnow *w = NULL;
    struct winnow_image image = {0};
    struct winnow_request request = {0};
    struct winnow_event event = {0};
    uint64_t job;
    int code = 1;

    if (argc != 4) {
        fprintf(stderr, "usage: %s ENDPOINT IMAGE QUESTION\n", argv[0]);
        return 2;
    }
    image.data = read_file(argv[2], &image.bytes);
    if (!image.data) {
        fprintf(stderr, "cannot read %s\n", argv[2]);
        return 1;
    }
    request.prompt = argv[3];
    request.images = &image;
    request.images_n = 1;
    if (winnow_connect(&w, argv[1], NULL) != WINNOW_OK || winnow_submit(w, &request, &job) != WINNOW_OK) {
        fprintf(stderr, "%s\n", winnow_error(w));
        goto out;
    }
    while (event.type != WINNOW_EVENT_DONE) {
        if (winnow_next(w, &event, 60000) != WINNOW_OK) {
            fprintf(stderr, "%s\n", winnow_error(w));
            goto out;
        }
        if (event.type == WINNOW_EVENT_TEXT) {
            fputs(event.text, stdout);
            fflush(stdout);
        }
        if (event.type == WINNOW_EVENT_ERROR || event.type == WINNOW_EVENT_BUSY) {
            fprintf(stderr, "%s\n", event.text);
            goto out;
        }
    }
    printf("\n(%u visual tokens, %u of the answer)\n", event.usage.image_tokens, event.usage.completion_tokens);
    code = 0;
out:
    winnow_close(w);
    free((void *)image.data);
    return code;
}
