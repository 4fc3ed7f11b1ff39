/* Prints the kernel tables that this CPU can run, best first, one a line: what the emulated tests
 * compare with what a CPU is known to have. */
#include <stdio.h>

#include "awq_edge.h"

int main(void) {
    for (size_t i = 0; awqe_kernels(i) != NULL; ++i) printf("%s\n", awqe_kernels(i));
    return 0;
}
