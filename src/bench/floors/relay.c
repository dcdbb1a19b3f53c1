/* The floor of a warm request: relay LISTEN_PATH PYTHON_PATH passes each
 * request on, and its answer back, with one read and one write per hop. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_un address(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strncpy(name.sun_path, path, sizeof name.sun_path - 1);
    return name;
}

static int pass(int from, int to) {
    static char buffer[65536];
    ssize_t length = read(from, buffer, sizeof buffer);
    return length > 0 && write(to, buffer, (size_t)length) == length;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    int python = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un here = address(argv[1]), there = address(argv[2]);
    if (connect(python, (struct sockaddr *)&there, sizeof there) ||
        bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1))
        return 1;
    puts("ready");
    fflush(stdout);
    int client = accept(listener, NULL, NULL);
    while (pass(client, python) && pass(python, client)) {
    }
    return 0;
}
