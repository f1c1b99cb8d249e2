/* client/eval_set.c - evaluation sets: one JSON object a line, of which five strings are looked at. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/eval.h"

#define LINE_MAX_BYTES ((size_t)1 << 20)
#define DEPTH_MAX      32

enum { F_ID, F_IMAGE, F_FAMILY, F_QUESTION, F_ANSWER, FIELDS_N };
static const char *const field_names[FIELDS_N] = {"id", "image", "family", "question", "answer"};

/* A line that is being read. Its text ends in NUL. */
struct reader {
    const char *at;
    const char *bad; /* what is wrong; NULL: nothing yet */
};

static void skip_space(struct reader *r)
{
    r->at += strspn(r->at, " \t\r\n");
}

static bool fail(struct reader *r, const char *what)
{
    if (!r->bad) r->bad = what;
    return false;
}

static bool take(struct reader *r, char c)
{
    skip_space(r);
    if (*r->at != c) return false;
    r->at++;
    return true;
}

static bool hex4(struct reader *r, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        const char c = *r->at;
        const int v = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
        if (v < 0) return fail(r, "a \\u without four hexadecimal digits");
        *out = *out << 4 | (uint32_t)v;
    }
    return true;
}

/* The code point after "\u", of two such if they are a pair. */
static bool take_unicode(struct reader *r, uint32_t *cp)
{
    uint32_t low;

    if (!hex4(r, cp)) return false;
    if (*cp == 0) return fail(r, "a string with \\u0000");
    if (*cp < 0xd800 || *cp > 0xdfff) return true;
    if (*cp > 0xdbff || r->at[0] != '\\' || r->at[1] != 'u') return fail(r, "half of a surrogate pair");
    r->at += 2;
    if (!hex4(r, &low)) return false;
    if (low < 0xdc00 || low > 0xdfff) return fail(r, "half of a surrogate pair");
    *cp = 0x10000 + ((*cp - 0xd800) << 10) + (low - 0xdc00);
    return true;
}

static char *put_utf8(char *to, uint32_t cp)
{
    if (cp < 0x80) {
        *to++ = (char)cp;
    } else if (cp < 0x800) {
        *to++ = (char)(0xc0 | cp >> 6);
        *to++ = (char)(0x80 | (cp & 63));
    } else if (cp < 0x10000) {
        *to++ = (char)(0xe0 | cp >> 12);
        *to++ = (char)(0x80 | (cp >> 6 & 63));
        *to++ = (char)(0x80 | (cp & 63));
    } else {
        *to++ = (char)(0xf0 | cp >> 18);
        *to++ = (char)(0x80 | (cp >> 12 & 63));
        *to++ = (char)(0x80 | (cp >> 6 & 63));
        *to++ = (char)(0x80 | (cp & 63));
    }
    return to;
}

/* A string in quotes; no escape is longer than what it stands for. *out is owned by the caller. */
static bool take_string(struct reader *r, char **out)
{
    static const char escapes[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    char *text, *to;

    if (!take(r, '"')) return fail(r, "a string was expected");
    if (!(text = to = malloc(strlen(r->at) + 1))) return fail(r, "out of memory");
    while (*r->at && *r->at != '"') {
        const char *e;
        uint32_t cp;
        if (*r->at != '\\') {
            *to++ = *r->at++;
            continue;
        }
        r->at++;
        if (*r->at == 'u') {
            r->at++;
            if (!take_unicode(r, &cp)) goto bad;
            to = put_utf8(to, cp);
        } else if (*r->at && (e = strchr(escapes, *r->at)) != NULL) {
            *to++ = means[e - escapes];
            r->at++;
        } else {
            fail(r, "an unknown escape in a string");
            goto bad;
        }
    }
    if (*r->at != '"') {
        fail(r, "a string that does not end");
        goto bad;
    }
    r->at++;
    *to = '\0';
    *out = text;
    return true;
bad:
    free(text);
    return false;
}

/* A value that is of no interest. Brackets are counted, not matched by kind. */
static bool skip_value(struct reader *r)
{
    int depth = 0;

    do {
        skip_space(r);
        if (*r->at == '"') {
            char *text;
            if (!take_string(r, &text)) return false;
            free(text);
        } else if (*r->at == '[' || *r->at == '{') {
            if (++depth > DEPTH_MAX) return fail(r, "a value that is nested too deep");
            r->at++;
        } else if (*r->at == ']' || *r->at == '}') {
            if (--depth < 0) return fail(r, "a value was expected");
            r->at++;
        } else if (depth && (*r->at == ',' || *r->at == ':')) {
            r->at++;
        } else {
            const size_t n = strspn(r->at, "+-.0123456789Eaeflnrstu");
            if (n == 0) return fail(r, *r->at ? "a value was expected" : "the line ends too early");
            r->at += n;
        }
    } while (depth);
    return true;
}

/* The five strings of one object; those that are there are owned by the caller, also on failure. */
static bool take_object(struct reader *r, char *fields[FIELDS_N])
{
    char *name = NULL;

    if (!take(r, '{')) return fail(r, "an object was expected");
    if (!take(r, '}')) {
        do {
            int f = 0;
            if (!take_string(r, &name)) return false;
            while (f < FIELDS_N && strcmp(name, field_names[f]) != 0) f++;
            free(name);
            if (!take(r, ':')) return fail(r, "a ':' was expected");
            if (f < FIELDS_N && fields[f]) return fail(r, "a field that is there twice");
            if (!(f < FIELDS_N ? take_string(r, &fields[f]) : skip_value(r))) return false;
        } while (take(r, ','));
        if (!take(r, '}')) return fail(r, "a '}' was expected");
    }
    skip_space(r);
    return *r->at ? fail(r, "something after the object") : true;
}

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

/* Moves the fields into the set. */
static bool add_question(struct eval_set *set, const char *path, uint32_t line, char *fields[FIELDS_N])
{
    const char *slash = strrchr(path, '/');
    const size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    struct eval_question q = {0}, *more;
    size_t bytes;

    for (int i = 0; i < FIELDS_N; i++)
        if (!fields[i]) {
            fprintf(stderr, "winnow: %s:%u: no string \"%s\"\n", path, line, field_names[i]);
            return false;
        }
    if (set->n == set->room) {
        set->room = set->room ? set->room * 2 : 256;
        if (!(more = realloc(set->q, set->room * sizeof(*more)))) goto no_memory;
        set->q = more;
    }
    bytes = folder + strlen(fields[F_IMAGE]) + 1;
    if (!(q.image = malloc(bytes))) goto no_memory;
    snprintf(q.image, bytes, "%.*s%s", fields[F_IMAGE][0] == '/' ? 0 : (int)folder, path, fields[F_IMAGE]);
    q.id = fields[F_ID];
    q.family = fields[F_FAMILY];
    q.text = fields[F_QUESTION];
    q.answer = fields[F_ANSWER];
    free(fields[F_IMAGE]);
    memset(fields, 0, FIELDS_N * sizeof(*fields));
    if (!add_family(set, &q)) {
        fprintf(stderr, "winnow: %s:%u: more than %d families\n", path, line, EVAL_FAMILIES_MAX);
        free_question(&q);
        return false;
    }
    set->q[set->n++] = q;
    return true;
no_memory:
    fprintf(stderr, "winnow: out of memory\n");
    return false;
}

static bool add_line(struct eval_set *set, const char *path, uint32_t line, const char *text)
{
    char *fields[FIELDS_N] = {0};
    struct reader r = {.at = text};
    bool good = take_object(&r, fields);

    if (!good)
        fprintf(stderr, "winnow: %s:%u: %s\n", path, line, r.bad);
    else
        good = add_question(set, path, line, fields);
    for (int i = 0; i < FIELDS_N; i++) free(fields[i]);
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
