/* Makes a control page by hand, and lies in it. Usage: liar MODE. The layout is that of crates/kernel/src/control.rs. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct page {
    char magic[8];
    uint32_t version;
    int32_t pid, tid;
    uint32_t request, answer, sections, callbacks, restarts;
    uint64_t lease_ns, limit_ns;
    char message[256];
};

int main(int argc, char **argv) {
    int mode = argc > 1 ? atoi(argv[1]) : 0;
    int fd = memfd_create("gridcpr", 0);
    if (fd < 0 || ftruncate(fd, 4096) != 0)
        return 1;
    struct page *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, mode == 5 ? MAP_SHARED : MAP_PRIVATE, fd, 0);
    if (page == MAP_FAILED)
        return 1;
    close(fd);
    page->version = 1;
    page->pid = page->tid = getpid();
    page->callbacks = 0xffffffff;
    memset(page->message, 0x1b, sizeof page->message); /* No zero at its end, and not printable. */
    memcpy(page->magic, "gridcpr\1", 8);
    switch (mode) {
    case 0: /* Says nothing, ever. */
        break;
    case 1: /* A thread of somebody else's. */
        page->tid = 1;
        break;
    case 2: /* No request and no answer that exists. */
        page->request = page->answer = 0xffffffff;
        break;
    case 3: /* Always at work, for ever. */
        page->answer = 1;
        page->lease_ns = UINT64_MAX;
        break;
    case 4: /* Has refused already what comes next. */
        page->answer = (1 << 3) | 4;
        break;
    }
    printf("ready\n");
    fflush(stdout);
    for (;;)
        pause();
}
