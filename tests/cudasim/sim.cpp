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
    uint32_t bytes;
};

struct fiber {
    void *sp;
    unsigned char *stack;
    bool done;
    std::vector<std::vector<copy>> groups; /* asynchronous copies, the open group last */
};

static std::vector<fiber> fibers;
static void *main_sp;
static const std::function<void()> *body;
static std::vector<uint32_t> order;

struct barrier {
    uint32_t arrived, turn;
};
static barrier block_barrier, warp_barrier[32];
static uint32_t alive, warp_alive[32];
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
    sim.thread_at = dim3(thread % sim.block.x, thread / sim.block.x, 0);
}

static void yield(void)
{
    uint32_t me = sim.thread;
    sim_switch(&fibers[me].sp, main_sp);
    place(me);
}

static void fiber_main(void)
{
    uint32_t me = sim.thread;
    (*body)();
    sim_cp_wait(0);
    fibers[me].done = true;
    alive--;
    warp_alive[me / 32]--;
    yield();
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
    f.groups.assign(1, {});
}

static void run_block(const std::function<void()> &kernel, uint32_t threads)
{
    body = &kernel;
    if (fibers.size() < threads) fibers.resize(threads);
    block_barrier = {0, 0};
    alive = threads;
    for (uint32_t w = 0; w < 32; w++) {
        warp_barrier[w] = {0, 0};
        warp_alive[w] = 0;
    }
    for (uint32_t t = 0; t < threads; t++) {
        fiber_start(fibers[t]);
        warp_alive[t / 32]++;
    }
    while (alive > 0) {
        for (uint32_t t : order) {
            if (fibers[t].done) continue;
            place(t);
            sim_switch(&main_sp, fibers[t].sp);
        }
    }
}

void sim_launch(dim3 grid, dim3 block, size_t shared, const std::function<void()> &kernel)
{
    static unsigned char *memory;
    const char *how = getenv("WN_CUDASIM_ORDER");
    uint32_t threads = block.x * block.y;

    if (!memory) memory = (unsigned char *)aligned_alloc(64, 256 << 10);
    order.resize(threads);
    for (uint32_t t = 0; t < threads; t++) order[t] = how && strcmp(how, "reverse") == 0 ? threads - 1 - t : t;
    sim.grid = grid;
    sim.block = block;
    sim.shared = memory;
    for (uint32_t z = 0; z < grid.z; z++)
        for (uint32_t y = 0; y < grid.y; y++)
            for (uint32_t x = 0; x < grid.x; x++) {
                sim.block_at = dim3(x, y, z);
                memset(memory, 0xff, shared);
                run_block(kernel, threads);
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
    fibers[sim.thread].groups.back().push_back({shared, global, bytes});
}

void sim_cp_commit(void)
{
    fibers[sim.thread].groups.push_back({});
}

void sim_cp_wait(int left)
{
    std::vector<std::vector<copy>> &g = fibers[sim.thread].groups;
    while ((int)g.size() - 1 > left) {
        for (const copy &c : g.front()) {
            memset(c.to, 0, 16);
            if (c.bytes) memcpy(c.to, c.from, c.bytes);
        }
        g.erase(g.begin());
    }
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

void wn_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned char *raw = sim_exchange(mine, sizeof(mine));
    const uint32_t(*all)[6] = (const uint32_t(*)[6])raw;
    uint32_t g = sim.thread % 32 / 4, t = sim.thread % 4;

    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = g + (i / 2) * 8, col = 2 * t + i % 2;
        for (uint32_t k = 0; k < 16; k++) {
            /* a[row][k]: the lane row % 8, k % 8 / 2; register row / 8 + 2 * (k / 8) */
            uint32_t av = all[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)];
            uint32_t bv = all[col * 4 + k % 8 / 2][4 + k / 8];
            c[i] += half_of(av, k % 2) * half_of(bv, k % 2);
        }
    }
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
