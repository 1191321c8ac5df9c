"""C programs that tests trace. What they do is counted exactly, so what they do is fixed."""

# systemtap's note format by hand: probes without sys/sdt.h.
USDT = r"""
#include <stdio.h>
#define PROBE(provider, name, semaphore, arguments, ...)                                     \
    asm volatile("990: nop\n"                                                                \
                 ".pushsection .note.stapsdt,\"\",\"note\"\n"                                \
                 ".balign 4\n .4byte 992f-991f, 994f-993f, 3\n"                              \
                 "991: .asciz \"stapsdt\"\n 992: .balign 4\n"                                \
                 "993: .8byte 990b, _.stapsdt.base, " semaphore "\n"                         \
                 ".asciz \"" provider "\"\n .asciz \"" name "\"\n .asciz \"" arguments "\"\n" \
                 "994: .balign 4\n .popsection\n"                                            \
                 ".ifndef _.stapsdt.base\n"                                                  \
                 ".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n"     \
                 ".weak _.stapsdt.base\n .hidden _.stapsdt.base\n"                           \
                 "_.stapsdt.base: .space 1\n .size _.stapsdt.base, 1\n .popsection\n"        \
                 ".endif\n" ::__VA_ARGS__)

unsigned short counted __attribute__((section(".probes"), used));
int global_value = 7;

__attribute__((noinline)) void registers(int a, long b) {
    PROBE("app", "registers", "0", "-4@%[a] 8@%[b] -4@$-5", [a] "r"(a), [b] "r"(b));
}
__attribute__((noinline)) void memory(long value) {
    volatile long local[4] = {1, value, 3, 4};
    PROBE("app", "memory", "0", "8@%[m]", [m] "m"(local[1]));
    PROBE("app", "memory", "0", "-4@%[g]", [g] "m"(global_value));
}
__attribute__((noinline)) void guarded(int n) {
    if (counted) PROBE("app", "guarded", "counted", "-4@%[n]", [n] "r"(n));
}
static inline __attribute__((always_inline)) void twice(int n) {
    PROBE("lib", "inlined", "0", "-4@%[n]", [n] "r"(n));
}
int main(void) {
    getchar();
    for (int i = 0; i < 100; i++) registers(i, 1000L + i);
    for (int i = 0; i < 50; i++) memory(i);
    for (int i = 0; i < 30; i++) guarded(i);
    twice(1);
    twice(2);
    return 0;
}
"""

TYPES = r"""
#include <stdbool.h>
struct inner { char text[10]; union { int number; float real; }; };
struct outer {
    int first; unsigned int low : 3; unsigned int high : 5; struct inner in; struct outer *next; char **words;
};
typedef struct { long x, y; } point_t;
enum color { RED, GREEN };
struct large { long words[5]; };

int simple(int n, char c, const char *text, struct outer *o) { return n + c + (int)text[0] + o->first; }
struct outer *result(struct outer *o) { return o; }
double floating(double d, int after, float f, long last) { return d + after + f + last; }
long by_value(point_t p, int after) { return p.x + after; }
struct large in_memory(int n) { struct large l = {{n}}; return l; }
int many(int a, int b, int c, int d, int e, int f, int g) { return a + b + c + d + e + f + g; }
int others(enum color color, bool flag, unsigned char byte, point_t *where, long grid[2][3]) {
    return color + flag + byte + where->x + grid[0][0];
}
int main(void) {
    struct outer o = {1};
    return simple(1, 2, "x", result(&o));
}
"""

CPP = r"""
namespace app {
struct Server {
    int handle(int fd) { return fd + 1; }
    int handle(const char *text) { return text[0]; }
    int operator+(int other) const { return other; }
};
template <typename T> T twice(T value) { return value + value; }
}
extern "C" int plain(int x) { return x; }
int main() {
    app::Server server;
    return server.handle(1) + server.handle("a") + app::twice<int>(2) + app::twice<long>(3) + plain(1) + (server + 2);
}
"""
