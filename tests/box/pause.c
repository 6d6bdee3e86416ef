/* The process that holds a pod's namespaces open. */
#include <unistd.h>

int main(void) {
    for (;;)
        pause();
}
