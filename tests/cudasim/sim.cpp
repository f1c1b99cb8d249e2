/* The simulated device: fibers, warp operations, instructions. One thread at a time uses it (runtime.cpp has the lock). */
#include <vector>

#include "tests/cudasim/device.cuh"

extern "C" {
#include "base/dtype.h"
}

sim_state sim;

/* ---- fibers ---- */

#define STACK_BYTES (64u << 10)

struct copy {
    void *to;
    const void *from;
    uint32_t bytes, group;
};

struct fiber {
    void *sp;
    unsigned char *stack;
    bool done;
    dim3 at;
    uint32_t next;            /* the thread that runs after it */
    std::vector<copy> copies; /* asynchronous ones, from copies_at on still to be made */
    size_t copies_at;
    uint32_t group; /* the open one */
};

static std::vector<fiber> fibers;
static void *main_sp;
static const std::function<void()> *body;

struct barrier {
    uint32_t arrived, turn;
};
static barrier block_barrier, warp_barrier[32];
static uint32_t alive, warp_alive[32], followed;
static std::vector<unsigned char> table[32][2]; /* what the lanes of a warp put in, by turns */

/* Saves the callee's registers on the stack and goes on where *to was left. */
extern "C" void sim_switch(void **from, void *to);
asm(".text\n.globl sim_switch\nsim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void place(uint32_t thread)
{
    sim.thread = thread;
    sim.warp = thread / 32;
    sim.thread_at = fibers[thread].at;
}

/* Lets the next thread that is not done have its turn, each after the other, round and round. */
static void yield(void)
{
    uint32_t me = sim.thread, to = fibers[me].next;

    while (fibers[to].done && to != me) to = fibers[to].next;
    if (to == me) return;
    place(to);
    sim_switch(&fibers[me].sp, fibers[to].sp);
}

static void fiber_main(void)
{
    uint32_t me = sim.thread;
    (*body)();
    sim_cp_wait(0);
    fibers[me].done = true;
    alive--;
    warp_alive[me / 32]--;
    if (alive > 0) yield();
    else sim_switch(&fibers[me].sp, main_sp);
    abort(); /* a fiber that is over is never resumed */
}

static void fiber_start(fiber &f)
{
    if (!f.stack) f.stack = (unsigned char *)malloc(STACK_BYTES);
    void **sp = (void **)(f.stack + STACK_BYTES - 64);
    *--sp = nullptr; /* keeps the stack aligned as after a call */
    *--sp = (void *)fiber_main;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    f.sp = sp;
    f.done = false;
    f.copies.clear();
    f.copies_at = 0;
    f.group = 0;
}

static void run_block(const std::function<void()> &kernel, uint32_t threads, uint32_t first)
{
    body = &kernel;
    block_barrier = {0, 0};
    alive = threads;
    followed = 0;
    for (uint32_t w = 0; w < 32; w++) {
        warp_barrier[w] = {0, 0};
        warp_alive[w] = 0;
    }
    for (uint32_t t = 0; t < threads; t++) {
        fiber_start(fibers[t]);
        warp_alive[t / 32]++;
    }
    place(first);
    sim_switch(&main_sp, fibers[first].sp); /* until all are done */
}

void sim_launch(dim3 grid, dim3 block, size_t shared, bool early, const std::function<void()> &kernel)
{
    static unsigned char *memory;
    const char *how = getenv("WN_CUDASIM_ORDER");
    const bool reverse = how && strcmp(how, "reverse") == 0;
    uint32_t threads = block.x * block.y;

    if (!memory) memory = (unsigned char *)aligned_alloc(64, 256 << 10);
    if (fibers.size() < threads) fibers.resize(threads);
    for (uint32_t t = 0; t < threads; t++) {
        fibers[t].at = dim3(t % block.x, t / block.x, 0);
        fibers[t].next = reverse ? (t + threads - 1) % threads : (t + 1) % threads;
    }
    sim.grid = grid;
    sim.block = block;
    sim.shared = memory;
    for (uint32_t z = 0; z < grid.z; z++)
        for (uint32_t y = 0; y < grid.y; y++)
            for (uint32_t x = 0; x < grid.x; x++) {
                sim.block_at = dim3(x, y, z);
                memset(memory, 0xff, shared);
                run_block(kernel, threads, reverse ? threads - 1 : 0);
                if (early && followed != threads) abort(); /* the next kernel could overtake the one before */
            }
}

static void wait_at(barrier *b, const uint32_t *members)
{
    uint32_t turn = b->turn;
    b->arrived++;
    while (b->turn == turn) {
        if (b->arrived >= *members) { /* threads that have ended count as arrived, as on the device */
            b->arrived = 0;
            b->turn++;
            return;
        }
        yield();
    }
}

void sim_follow(void)
{
    followed++;
}

void sim_block_barrier(void)
{
    wait_at(&block_barrier, &alive);
}

const unsigned char *sim_exchange(const void *mine, size_t bytes)
{
    uint32_t w = sim.warp;
    std::vector<unsigned char> &t = table[w][warp_barrier[w].turn % 2];
    if (t.size() < 32 * bytes) t.resize(32 * 256);
    memcpy(t.data() + sim.thread % 32 * bytes, mine, bytes);
    wait_at(&warp_barrier[w], &warp_alive[w]);
    return t.data();
}

void sim_cp_async(void *shared, const void *global, uint32_t bytes)
{
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16) abort();
    fiber &f = fibers[sim.thread];
    f.copies.push_back({shared, global, bytes, f.group});
}

void sim_cp_commit(void)
{
    fibers[sim.thread].group++;
}

void sim_cp_wait(int left)
{
    fiber &f = fibers[sim.thread];
    for (; f.copies_at < f.copies.size(); f.copies_at++) {
        const copy &c = f.copies[f.copies_at];
        if (c.group + (uint32_t)left >= f.group) return; /* one of the last groups, or the open one */
        memset(c.to, 0, 16);
        if (c.bytes) memcpy(c.to, c.from, c.bytes);
    }
    f.copies.clear();
    f.copies_at = 0;
}

/* ---- instructions ---- */

float wn_f16_value(uint16_t h)
{
    return wn_f16_to_f32(h);
}

uint32_t wn_pack_bf16(float lo, float hi)
{
    return (uint32_t)wn_f32_to_bf16(lo) | (uint32_t)wn_f32_to_bf16(hi) << 16;
}

static float half_of(uint32_t v, uint32_t i)
{
    return wn_bf16_to_f32((uint16_t)(v >> 16 * i));
}

uint32_t wn_add_bf16(uint32_t a, uint32_t b)
{
    return wn_pack_bf16(half_of(a, 0) + half_of(b, 0), half_of(a, 1) + half_of(b, 1));
}

void wn_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned char *raw = sim_exchange(mine, sizeof(mine));
    const uint32_t(*all)[6] = (const uint32_t(*)[6])raw;
    uint32_t g = sim.thread % 32 / 4, t = sim.thread % 4;

    /* a[row][k] is with lane row % 8, k % 8 / 2, in register row / 8 + 2 * (k / 8); b[col][k] with lane col, k % 8 / 2 */
    for (uint32_t k = 0; k < 16; k++) {
        const uint32_t *row = all[4 * g + k % 8 / 2];
        float a0 = half_of(row[2 * (k / 8)], k % 2), a1 = half_of(row[1 + 2 * (k / 8)], k % 2);
        float b0 = half_of(all[8 * t + k % 8 / 2][4 + k / 8], k % 2);
        float b1 = half_of(all[8 * t + 4 + k % 8 / 2][4 + k / 8], k % 2);
        c[0] += a0 * b0;
        c[1] += a0 * b1;
        c[2] += a1 * b0;
        c[3] += a1 * b1;
    }
}

void wn_ldmatrix(uint32_t r[4], const void *shared)
{
    if ((uintptr_t)shared % 16) abort();
    const unsigned char *raw = sim_exchange(&shared, sizeof(shared));
    const uint32_t *const *rows = (const uint32_t *const *)raw;
    uint32_t g = sim.thread % 32 / 4, t = sim.thread % 4;

    for (uint32_t i = 0; i < 4; i++) r[i] = rows[8 * i + g][t];
}

void wn_ldmatrix_trans(uint32_t r[4], const void *shared)
{
    if ((uintptr_t)shared % 16) abort();
    const unsigned char *raw = sim_exchange(&shared, sizeof(shared));
    const uint16_t *const *rows = (const uint16_t *const *)raw;
    uint32_t g = sim.thread % 32 / 4, t = sim.thread % 4;

    for (uint32_t i = 0; i < 4; i++)
        r[i] = (uint32_t)rows[8 * i + 2 * t][g] | (uint32_t)rows[8 * i + 2 * t + 1][g] << 16;
}
