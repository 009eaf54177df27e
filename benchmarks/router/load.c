/* Asks one server in a closed loop, from one thread, and prints one JSON object.
 *
 *   load HOST:PORT CLIENTS SECONDS TOKENS PAUSE BODY
 *
 * TOKENS 0: answers in one piece; else streams of so many events, one every PAUSE microseconds. BODY: bytes added to
 * each request. Times are microseconds; that of
 * `delay_p99` runs from when an event was due. The first fifth of the time is not counted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct client { int fd; size_t sent; uint64_t began; long first, need; char tail[8]; char head[4096]; size_t got; };
struct times { float *at; size_t count, room; };

static struct sockaddr_in server = { .sin_family = AF_INET };
static char *request, buffer[1 << 18];
static size_t size;
static int streams, paced, counting, poller;
static long requests, chunks, errors;
static struct times whole, first, delay;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void note(struct times *t, double microseconds)
{
    if (!counting)
        return;
    if (t->count == t->room)
        t->at = realloc(t->at, (t->room = t->room * 2 + 1024) * sizeof *t->at);
    t->at[t->count++] = microseconds;
}

static double since(uint64_t began)
{
    return (now() - began) / 1e3;
}

static int order(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double share(struct times *t, double part)
{
    return t->count ? t->at[(size_t)(part * (t->count - 1))] : 0;
}

static void send_on(struct client *c)
{
    while (c->sent < size) {
        ssize_t n = send(c->fd, request + c->sent, size - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n <= 0)
            break;
        c->sent += n;
    }
    struct epoll_event e = { .events = EPOLLIN | (c->sent < size ? EPOLLOUT : 0), .data.ptr = c };
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void ask(struct client *c)
{
    c->sent = c->got = 0;
    c->first = 0;
    c->need = -1;
    c->began = now();
    memset(c->tail, 0, sizeof c->tail);
    send_on(c);
}

static void dial(struct client *c)
{
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&server, sizeof server))
        perror("load"), exit(1);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
    ask(c);
}

static void again(struct client *c, int error)
{
    errors += error && counting;
    close(c->fd);
    dial(c);
}

static void done(struct client *c)
{
    note(&whole, since(c->began));
    requests += counting;
    ask(c);
}

/* The part of `data` behind the head, once that is here. */
static char *behind_head(struct client *c, char *data, size_t *n)
{
    size_t room = sizeof c->head - 1 - c->got, part = *n < room ? *n : room, before = c->got;
    memcpy(c->head + c->got, data, part);
    c->head[c->got += part] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end)
        return *n = 0, data;
    char *length = strcasestr(c->head, "content-length:");
    c->need = strncmp(c->head + 9, "200", 3) ? -2 : length ? atol(length + 15) : 0;
    size_t used = end + 4 - c->head - before;
    *n -= used;
    return data + used;
}

static int ends(struct client *c, const char *data, size_t n)
{
    char last[16];
    size_t part = n < 7 ? n : 7;
    memcpy(last, c->tail, 7);
    memcpy(last + 7, data + n - part, part);
    memcpy(c->tail, last + part, 7);
    return !memcmp(c->tail, "\r\n0\r\n\r\n", 7);
}

static void count(const char *data, size_t n)
{
    for (const char *at = data; (at = memmem(at, data + n - at, "data: ", 6)); at += 6)
        chunks += counting;
}

/* How long ago the events of `data` were due, as far as they are told in one piece. */
static void time_events(const char *data, size_t n)
{
    uint64_t at = now() / 1000, wrap = 10000000000;
    for (const char *p = data; (p = memmem(p, data + n - p, "\"created\":", 10)); p += 10)
        if (data + n - p >= 20)
            note(&delay, (at % wrap + wrap - strtoull(p + 10, NULL, 10)) % wrap);
}

static void take(struct client *c)
{
    ssize_t got = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        return again(c, 1);
    size_t n = got;
    char *data = buffer;
    if (c->need == -1)
        data = behind_head(c, data, &n);
    if (c->need == -2)
        return again(c, 1);
    if (c->need == -1 || !n)
        return;
    if (!c->first++)
        note(&first, since(c->began));
    if (!streams) {
        if ((c->need -= n) <= 0)
            done(c);
        return;
    }
    count(data, n);
    if (paced)
        time_events(data, n);
    if (ends(c, data, n))
        done(c);
}

static void write_request(long tokens, long pause, long extra)
{
    char *body = malloc(extra + 1024);
    int n = sprintf(body, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"");
    memset(body + n, 'x', extra);
    n += extra;
    n += sprintf(body + n, "One sentence about a quick brown fox, please.\"}],\"max_tokens\":%ld,\"seed\":%ld%s}",
                 tokens ? tokens : 20, pause, tokens ? ",\"stream\":true" : "");
    request = malloc(n + 512);
    size = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nUser-Agent: load\r\n"
                   "Authorization: Bearer sk-bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", n);
    memcpy(request + size, body, n);
    size += n;
}

int main(int words, char **word)
{
    if (words != 7)
        return 2;
    char *port = strchr(word[1], ':');
    *port = 0;
    inet_pton(AF_INET, word[1], &server.sin_addr);
    server.sin_port = htons(atoi(port + 1));
    int many = atoi(word[2]);
    double seconds = atof(word[3]);
    streams = atol(word[4]) > 0;
    paced = streams && atol(word[5]) > 0;
    write_request(atol(word[4]), atol(word[5]), atol(word[6]));
    poller = epoll_create1(0);
    struct client *all = calloc(many, sizeof *all);
    for (int i = 0; i < many; i++)
        dial(&all[i]);
    uint64_t begin = now(), from = begin + seconds * 2e8, until = begin + seconds * 1e9;
    for (uint64_t t; (t = now()) < until;) {
        counting = t >= from;
        struct epoll_event ready[256];
        int found = epoll_wait(poller, ready, 256, 20);
        for (int i = 0; i < found; i++) {
            struct client *c = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT)
                send_on(c);
            if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                take(c);
        }
    }
    qsort(whole.at, whole.count, sizeof(float), order);
    qsort(first.at, first.count, sizeof(float), order);
    qsort(delay.at, delay.count, sizeof(float), order);
    double counted = (now() - from) / 1e9;
    printf("{\"requests\": %.1f, \"chunks\": %.1f, \"errors\": %ld, \"p50\": %.1f, \"p99\": %.1f, \"first_p50\": %.1f, "
           "\"delay_p99\": %.1f}\n", requests / counted, chunks / counted, errors, share(&whole, .5),
           share(&whole, .99), share(&first, .5), share(&delay, .99));
    return 0;
}
