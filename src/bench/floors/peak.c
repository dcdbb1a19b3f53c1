/* peak FILE PROGRAM ARGUMENT...: runs a program, writes the most memory that it
 * had at once to FILE, in KiB, and ends as it did. This program is small
 * because the system counts what it has as its child's until the exec. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    pid_t child = vfork();
    if (child < 0) return 1;
    if (child == 0) {
        execv(argv[2], argv + 2);
        _exit(127);
    }
    int status;
    struct rusage usage;
    if (wait4(child, &status, 0, &usage) != child) return 1;
    FILE *file = fopen(argv[1], "w");
    if (!file || fprintf(file, "%ld\n", usage.ru_maxrss) < 0 || fclose(file)) return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
