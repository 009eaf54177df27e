/* An engine that costs nothing: OpenAI's answers from one thread, over a Unix socket or, for routers that know none,
 * over TCP.
 *
 *   engine serve MODEL --uds PATH ...     as `vllm serve` is called; all other flags are ignored
 *   engine serve MODEL --port PORT
 *
 * "stream": true answers with max_tokens events, one every `seed` microseconds, 0 for as fast as they are taken.
 * `created` is when an event was due: microseconds of the monotonic clock, the last ten digits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4096, ROOM = 4 << 20 };

struct client { int fd; char *in; size_t got; long left, pause; uint64_t due; int full; char *out; size_t sent, size; };

static struct client *clients[MOST];
static int poller;

static const char EVENT[] =
    "data: {\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":%010llu,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char LAST[] =
    "data: {\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"choices\":[],"
    "\"usage\":{\"prompt_tokens\":10,\"total_tokens\":30,\"completion_tokens\":20}}\n\ndata: [DONE]\n\n";
static const char STREAM[] =
    "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "transfer-encoding: chunked\r\n\r\n";
static const char WHOLE[] =
    "{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"m\",\"version\":\"0\","
    "\"data\":[{\"id\":\"m\"}],\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
    "\"The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog.\"},"
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,\"total_tokens\":30,\"completion_tokens\":20}}";

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ull + t.tv_nsec / 1000;
}

static void watch(struct client *c, int op, int out)
{
    struct epoll_event e = { .events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c };
    epoll_ctl(poller, op, c->fd, &e);
}

static void drop(struct client *c)
{
    clients[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

/* 0 when the client has gone. What the socket does not take waits, and `full` says so. */
static int put(struct client *c, const char *data, size_t size)
{
    ssize_t taken = c->full ? 0 : send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (taken < 0 && errno != EAGAIN)
        return 0;
    if (taken < 0)
        taken = 0;
    if ((size_t)taken == size)
        return 1;
    size_t rest = size - taken, held = c->size - c->sent;
    char *bigger = malloc(held + rest);
    memcpy(bigger, c->out + c->sent, held);
    memcpy(bigger + held, data + taken, rest);
    free(c->out);
    c->out = bigger, c->sent = 0, c->size = held + rest;
    if (!c->full)
        watch(c, EPOLL_CTL_MOD, 1);
    c->full = 1;
    return 1;
}

static int flush(struct client *c)
{
    ssize_t taken = send(c->fd, c->out + c->sent, c->size - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (taken < 0)
        return errno == EAGAIN;
    if ((c->sent += taken) == c->size) {
        c->sent = c->size = c->full = 0;
        watch(c, EPOLL_CTL_MOD, 0);
    }
    return 1;
}

static int chunk(struct client *c, const char *event, size_t size)
{
    char framed[1024];
    int head = sprintf(framed, "%zx\r\n", size);
    memcpy(framed + head, event, size);
    memcpy(framed + head + size, "\r\n", 2);
    return put(c, framed, head + size + 2);
}

static int tick(struct client *c)
{
    char event[512];
    int size = sprintf(event, EVENT, (unsigned long long)(c->due % 10000000000));
    if (!chunk(c, event, size))
        return 0;
    if (--c->left == 0)
        return chunk(c, LAST, sizeof LAST - 1) && put(c, "0\r\n\r\n", 5);
    return 1;
}

static long number(const char *text, const char *name, long otherwise)
{
    const char *at = strstr(text, name);
    return at ? atol(at + strlen(name) + 1 + (at[strlen(name) + 1] == ' ')) : otherwise;
}

static int answer(struct client *c, const char *body)
{
    if (body && strstr(body, "\"stream\":true")) {
        c->left = number(body, "\"max_tokens\"", 20);
        c->pause = number(body, "\"seed\"", 0);
        c->due = now();
        int went = put(c, STREAM, sizeof STREAM - 1) && tick(c);
        c->due += c->pause;
        return went;
    }
    char whole[2048];
    int size = sprintf(whole, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: %zu\r\n"
                       "content-type: application/json\r\n\r\n%s", sizeof WHOLE - 1, WHOLE);
    return put(c, whole, size);
}

/* Answers the request that has come, if it is whole. Fields stand at the end of the body. */
static int serve(struct client *c)
{
    ssize_t got = recv(c->fd, c->in + c->got, ROOM - c->got, MSG_DONTWAIT);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    c->got += got;
    char *end = memmem(c->in, c->got, "\r\n\r\n", 4);
    if (!end)
        return 1;
    char *length = strcasestr(c->in, "content-length:");
    size_t head = end + 4 - c->in, body = length && length < end ? strtoul(length + 15, NULL, 10) : 0;
    if (c->got < head + body)
        return 1;
    c->in[c->got] = 0;
    c->got = 0;
    size_t tail = body < 300 ? body : 300;
    return answer(c, body ? c->in + head + body - tail : NULL);
}

static void take(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
    if (fd < 0 || fd >= MOST)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* of no effect on a Unix socket */
    struct client *c = clients[fd] = calloc(1, sizeof *c);
    c->fd = fd;
    c->in = malloc(ROOM + 1);
    watch(c, EPOLL_CTL_ADD, 0);
}

/* Sends what is due; microseconds until the next, -1 for none. */
static long pace(void)
{
    uint64_t at = now();
    long next = -1;
    for (int fd = 0; fd < MOST; fd++) {
        struct client *c = clients[fd];
        if (!c || !c->left)
            continue;
        if (!c->full && c->due <= at) {
            if (!tick(c)) {
                drop(c);
                continue;
            }
            c->due = c->pause ? (at / c->pause + 1) * c->pause : 0; /* all streams tick together, as behind one engine */
        }
        long wait = c->full ? -1 : c->due > at ? (long)(c->due - at) : 0;
        if (wait >= 0 && (next < 0 || wait < next))
            next = wait;
    }
    return next;
}

/* What of `words` follows `name`, if it is there. */
static const char *option(int count, char **words, const char *name)
{
    for (int i = 1; i + 1 < count; i++)
        if (!strcmp(words[i], name))
            return words[i + 1];
    return NULL;
}

static int listen_at(const char *path, const char *port)
{
    struct sockaddr_un near = { .sun_family = AF_UNIX };
    struct sockaddr_in far = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    if (path)
        strncpy(near.sun_path, path, sizeof near.sun_path - 1);
    else
        far.sin_port = htons(atoi(port));
    int listener = socket(path ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    int failed = path ? bind(listener, (void *)&near, sizeof near) : bind(listener, (void *)&far, sizeof far);
    if (failed || listen(listener, 4096))
        perror("engine"), exit(1);
    return listener;
}

int main(int count, char **words)
{
    const char *path = option(count, words, "--uds"), *port = option(count, words, "--port");
    if (!path && !port)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_at(path, port);
    poller = epoll_create1(0);
    struct epoll_event ready[256], e = { .events = EPOLLIN, .data.ptr = NULL };
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        long wait = pace();
        struct timespec limit = { wait / 1000000, wait % 1000000 * 1000 };
        int found = epoll_pwait2(poller, ready, 256, wait < 0 ? NULL : &limit, NULL);
        for (int i = 0; i < found; i++) {
            struct client *c = ready[i].data.ptr;
            if (!c)
                take(listener);
            else if ((ready[i].events & EPOLLOUT && !flush(c))
                     || (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !serve(c)))
                drop(c);
        }
    }
}
