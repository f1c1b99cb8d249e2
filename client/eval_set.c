/* client/eval_set.c - evaluation sets: one JSON object a line, of which five strings are looked at. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "client/eval.h"

#define LINE_MAX_BYTES ((size_t)1 << 20)

static bool add_family(struct eval_set *set, struct eval_question *q)
{
    while (q->family_i < set->families_n && strcmp(set->families[q->family_i], q->family) != 0) q->family_i++;
    if (q->family_i < set->families_n) return true;
    if (set->families_n == EVAL_FAMILIES_MAX) return false;
    set->families[set->families_n++] = q->family;
    return true;
}

static void free_question(struct eval_question *q)
{
    free(q->id);
    free(q->image);
    free(q->family);
    free(q->text);
    free(q->answer);
}

/* A copy of the string, owned by the caller, behind the first `folder` bytes of path. NULL: it was said why. */
static char *take_string(const json_t *o, const char *name, const char *path, size_t folder, uint32_t line)
{
    const char *value = json_string_value(json_object_get(o, name));
    char *text = NULL;

    if (!value)
        fprintf(stderr, "winnow: %s:%u: no string \"%s\"\n", path, line, name);
    else if (!(text = malloc(folder + strlen(value) + 1)))
        fprintf(stderr, "winnow: out of memory\n");
    else
        snprintf(text, folder + strlen(value) + 1, "%.*s%s", (int)folder, path, value);
    return text;
}

static bool make_room(struct eval_set *set)
{
    const uint32_t room = set->room ? set->room * 2 : 256;
    struct eval_question *more;

    if (set->n < set->room) return true;
    if (!(more = realloc(set->q, room * sizeof(*more)))) {
        fprintf(stderr, "winnow: out of memory\n");
        return false;
    }
    set->q = more;
    set->room = room;
    return true;
}

static bool add_question(struct eval_set *set, const char *path, uint32_t line, const json_t *o)
{
    const char *slash = strrchr(path, '/'), *image = json_string_value(json_object_get(o, "image"));
    const size_t folder = slash && !(image && image[0] == '/') ? (size_t)(slash - path) + 1 : 0;
    struct eval_question q = {0};

    if (!make_room(set)) return false;
    if (!(q.id = take_string(o, "id", path, 0, line)) || !(q.image = take_string(o, "image", path, folder, line)) ||
        !(q.family = take_string(o, "family", path, 0, line)) ||
        !(q.text = take_string(o, "question", path, 0, line)) || !(q.answer = take_string(o, "answer", path, 0, line)))
        goto bad;
    if (!add_family(set, &q)) {
        fprintf(stderr, "winnow: %s:%u: more than %d families\n", path, line, EVAL_FAMILIES_MAX);
        goto bad;
    }
    set->q[set->n++] = q;
    return true;
bad:
    free_question(&q);
    return false;
}

static bool add_line(struct eval_set *set, const char *path, uint32_t line, const char *text)
{
    json_error_t why = {0};
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    bool good = json_is_object(o);

    if (!good)
        fprintf(stderr, "winnow: %s:%u: %s\n", path, line, o ? "not an object" : why.text);
    else
        good = add_question(set, path, line, o);
    json_decref(o);
    return good;
}

/* By the picture's name; questions about one in the order of the file. */
static int by_picture(const void *a, const void *b)
{
    const struct eval_question *x = a, *y = b;
    const int order = strcmp(x->image, y->image);

    return order ? order : (x->picture_i > y->picture_i) - (x->picture_i < y->picture_i);
}

static void group(struct eval_set *set)
{
    for (uint32_t i = 0; i < set->n; i++) set->q[i].picture_i = i; /* the file's order, until below */
    qsort(set->q, set->n, sizeof(*set->q), by_picture);
    for (uint32_t i = 0; i < set->n; i++) {
        if (i == 0 || strcmp(set->q[i].image, set->q[i - 1].image) != 0) set->pictures_n++;
        set->q[i].picture_i = set->pictures_n - 1;
    }
}

bool eval_set_load(struct eval_set *set, const char *path, uint32_t limit)
{
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    size_t room = 0;
    bool good = true;

    memset(set, 0, sizeof(*set));
    if (!f) {
        fprintf(stderr, "winnow: cannot open %s: %s\n", path, strerror(errno));
        return false;
    }
    for (uint32_t line = 1; good && (limit == 0 || set->n < limit); line++) {
        const ssize_t n = getline(&text, &room, f);
        if (n < 0) break;
        if ((size_t)n > LINE_MAX_BYTES || memchr(text, '\0', (size_t)n) || set->n >= EVAL_QUESTIONS_MAX) {
            fprintf(stderr, "winnow: %s:%u: the line is too long, has a NUL, or is one too many\n", path, line);
            good = false;
        } else if (text[strspn(text, " \t\r\n")]) {
            good = add_line(set, path, line, text);
        }
    }
    if (good && (ferror(f) || set->n == 0)) {
        fprintf(stderr, "winnow: %s: %s\n", path, ferror(f) ? strerror(errno) : "no questions");
        good = false;
    }
    free(text);
    fclose(f);
    if (good)
        group(set);
    else
        eval_set_free(set);
    return good;
}

void eval_set_free(struct eval_set *set)
{
    for (uint32_t i = 0; i < set->n; i++) free_question(&set->q[i]);
    free(set->q);
    memset(set, 0, sizeof(*set));
}
