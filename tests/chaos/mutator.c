/* tests/chaos/mutator.c - see mutator.h. */
#include "tests/chaos/mutator.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t dice_roll(struct dice *d, uint32_t below)
{
    uint64_t z = d->state += 0x9e3779b97f4a7c15ull;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)(((z >> 32) * below) >> 32);
}

/* A copy. */
static void seeds_add(struct seeds *s, const void *data, size_t bytes)
{
    struct seed_file *f = &s->file[s->n];

    if (s->n == SEEDS_MAX || bytes > MUTANT_MAX / 2 || !(f->data = malloc(bytes ? bytes : 1))) return;
    memcpy(f->data, data, bytes);
    f->bytes = bytes;
    s->n++;
}

void seeds_read(struct seeds *s, const char *folder)
{
    struct dirent **list = NULL;
    const int n = scandir(folder, &list, NULL, alphasort); /* sorted: the same seed gives the same mutants anywhere */
    uint8_t data[MUTANT_MAX];
    char path[1024];

    for (int i = 0; i < n; i++) {
        FILE *f;
        snprintf(path, sizeof(path), "%s/%s", folder, list[i]->d_name);
        f = list[i]->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (f) {
            seeds_add(s, data, fread(data, 1, sizeof(data), f));
            fclose(f);
        }
        free(list[i]);
    }
    free(list);
    if (s->n == 0) {
        fprintf(stderr, "mutate: no seeds in %s\n", folder);
        exit(1);
    }
}

void seeds_free(struct seeds *s)
{
    for (size_t i = 0; i < s->n; i++) free(s->file[i].data);
    s->n = 0;
}

/* Bytes on their way out; what does not fit is dropped. */
struct sink {
    uint8_t *at, *end;
};

static void put(struct sink *o, const void *data, size_t n)
{
    if (n > (size_t)(o->end - o->at)) n = (size_t)(o->end - o->at);
    if (n) memcpy(o->at, data, n);
    o->at += n;
}

static void put_varint(struct sink *o, uint64_t v)
{
    uint8_t b[10];
    size_t n = 0;

    do b[n++] = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
    while ((v >>= 7) != 0);
    put(o, b, n);
}

static bool get_varint(const uint8_t **at, const uint8_t *end, uint64_t *v)
{
    *v = 0;
    for (int i = 0; i < 10 && *at < end; i++) {
        const uint8_t b = *(*at)++;
        *v |= (uint64_t)(b & 0x7f) << (7 * i);
        if (!(b & 0x80)) return true;
    }
    return false;
}

/* One field as it lies: [start, next) with its value at [value, value + n). */
struct field {
    const uint8_t *start, *value, *next;
    uint64_t tag, number; /* number: of a varint */
    size_t n;
};

static bool next_field(const uint8_t *at, const uint8_t *end, struct field *f)
{
    uint64_t n = 0;

    f->start = at;
    if (!get_varint(&at, end, &f->tag)) return false;
    f->value = at;
    switch (f->tag & 7) {
    case 0:
        if (!get_varint(&at, end, &f->number)) return false;
        f->n = (size_t)(at - f->value);
        break;
    case 1: f->n = 8; break;
    case 5: f->n = 4; break;
    case 2:
        if (!get_varint(&at, end, &n) || n > (size_t)(end - at)) return false;
        f->value = at;
        f->n = (size_t)n;
        break;
    default: return false;
    }
    if (f->n > (size_t)(end - f->value)) return false;
    f->next = f->value + f->n;
    return true;
}

static uint64_t odd_number(struct dice *d)
{
    static const uint64_t edges[] = {0, 1, 0x7f, 0x80, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32,
                                     INT64_MAX, 1ull << 63, UINT64_MAX, 3, 64, 4096};
    return dice_roll(d, 4) ? edges[dice_roll(d, sizeof(edges) / sizeof(edges[0]))] : dice_roll(d, 1u << 20);
}

static void change_value(struct dice *d, struct sink *o, const struct field *f)
{
    uint8_t noise[64];
    const size_t n = dice_roll(d, sizeof(noise));

    for (size_t i = 0; i < n; i++) noise[i] = (uint8_t)dice_roll(d, 256);
    switch (dice_roll(d, 3)) {
    case 0: /* another value of the same type */
        put_varint(o, f->tag);
        if ((f->tag & 7) == 0) {
            put_varint(o, odd_number(d));
        } else if ((f->tag & 7) == 2) {
            put_varint(o, n);
            put(o, noise, n);
        } else {
            put(o, noise, f->n);
        }
        break;
    case 1: /* another number or type of field over the same bytes */
        put_varint(o, f->tag ^ (1u << dice_roll(d, 8)));
        put(o, f->value - ((f->tag & 7) == 2), (size_t)(f->next - f->value) + ((f->tag & 7) == 2));
        break;
    default: /* a length that lies */
        put_varint(o, (f->tag & ~7ull) | 2);
        put_varint(o, odd_number(d));
        put(o, f->value, f->n);
    }
}

/* Copies a message and changes one of its fields, or one of a field that may be a message itself. */
static void bend(struct dice *d, struct sink *o, const uint8_t *at, const uint8_t *end, int depth)
{
    struct field f;
    uint32_t fields = 0, pick;

    for (const uint8_t *p = at; p < end && next_field(p, end, &f); p = f.next) fields++;
    pick = fields ? dice_roll(d, fields) : 0;
    for (; at < end && next_field(at, end, &f); at = f.next, pick--) {
        if (pick != 0) {
            put(o, f.start, (size_t)(f.next - f.start));
        } else if ((f.tag & 7) == 2 && f.n > 1 && depth < 6 && dice_roll(d, 4)) {
            uint8_t inner[MUTANT_MAX];
            struct sink in = {inner, inner + sizeof(inner)};
            bend(d, &in, f.value, f.value + f.n, depth + 1);
            put_varint(o, f.tag);
            put_varint(o, (uint64_t)(in.at - inner));
            put(o, inner, (size_t)(in.at - inner));
        } else {
            const uint32_t what = dice_roll(d, 8);
            const uint32_t copies = what == 0 ? 0 : what == 1 ? 2 : what == 2 ? 2 + dice_roll(d, 400) : 0;
            if (what < 3)
                for (uint32_t i = 0; i < copies; i++) put(o, f.start, (size_t)(f.next - f.start));
            else
                change_value(d, o, &f);
        }
    }
    if (at < end) put(o, at, (size_t)(end - at));
}

/* Bytes without regard to what they mean. */
static void bruise(struct dice *d, const struct seeds *s, uint8_t *data, size_t *n)
{
    const struct seed_file *other = &s->file[dice_roll(d, (uint32_t)s->n)];
    const uint32_t where = dice_roll(d, (uint32_t)*n + 1);
    size_t len;

    switch (dice_roll(d, 5)) {
    case 0:
        for (uint32_t i = 1 + dice_roll(d, 8); i > 0 && *n; i--)
            data[dice_roll(d, (uint32_t)*n)] ^= (uint8_t)(1u << dice_roll(d, 8));
        break;
    case 1: *n = where; break;
    case 2: /* the end is another seed's */
        len = other->bytes < MUTANT_MAX - where ? other->bytes : MUTANT_MAX - where;
        memcpy(data + where, other->data, len);
        *n = where + len;
        break;
    case 3: /* a piece comes twice */
        len = *n - where < MUTANT_MAX - *n ? *n - where : MUTANT_MAX - *n;
        memmove(data + *n, data + where, len);
        *n += len;
        break;
    default:
        if (where < *n) data[where] = (uint8_t)odd_number(d);
    }
}

size_t mutate(struct dice *d, const struct seeds *s, uint8_t *out)
{
    const struct seed_file *seed = &s->file[dice_roll(d, (uint32_t)s->n)];
    struct sink o = {out, out + MUTANT_MAX};
    size_t n;

    if (dice_roll(d, 8) == 0) {
        n = dice_roll(d, 300);
        for (size_t i = 0; i < n; i++) out[i] = (uint8_t)dice_roll(d, 256);
        return n;
    }
    bend(d, &o, seed->data, seed->data + seed->bytes, 0);
    n = (size_t)(o.at - out);
    if (dice_roll(d, 3) == 0) bruise(d, s, out, &n);
    return n;
}
