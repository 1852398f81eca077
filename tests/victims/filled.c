/* Memory that a restart fills from outside, or with huge pages, has the same contents and asks for no huge pages; where
   programs get them without asking it has some. */
#include "victim.h"

#define PAGE 4096
/* Not whole huge pages at either end. */
#define LENGTH ((24ul << 20) + 3 * PAGE)

static unsigned long word(size_t at) { return (at + 1) * 0x9e3779b97f4a7c15ul; }

int main(int argc, char **argv) {
    begin(argc, argv);
    unsigned char *all = mmap(NULL, LENGTH + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED && mprotect(all + PAGE, LENGTH, PROT_READ | PROT_WRITE) == 0);
    unsigned long *memory = (unsigned long *)(all + PAGE);
    for (size_t at = 0; at < LENGTH / sizeof *memory; at++) memory[at] = word(at);
    ready();
    for (size_t at = 0; at < LENGTH / sizeof *memory; at++) {
        if (memory[at] != word(at)) fail(__LINE__, "word %zu is %lx", at, memory[at]);
    }
    static char text[1 << 20];
    char head[64];
    slurp("/proc/self/smaps", text, sizeof text);
    snprintf(head, sizeof head, "%lx-", (unsigned long)memory);
    char *mapping = strstr(text, head);
    CHECK(mapping && strtoul(mapping + strlen(head), NULL, 16) == (unsigned long)memory + LENGTH);
    char *huge = strstr(mapping, "AnonHugePages:");
    char *flags = strstr(mapping, "VmFlags:");
    CHECK(huge && flags && strchr(flags, '\n'));
    *strchr(flags, '\n') = 0;
    CHECK(!strstr(flags, " hg") && !strstr(flags, " um"));
    long kib = strtol(huge + strlen("AnonHugePages:"), NULL, 10);
    slurp("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text);
    if (strstr(text, "[always]") && kib < 2048) fail(__LINE__, "%ld KiB are in huge pages", kib);
    ok();
}
