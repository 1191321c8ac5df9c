/*
 * pageout MODE ROUNDS FILE: shows probes a string that no memory holds at that moment.
 *
 * The string is the first page of FILE, mapped privately. Before each round the page is thrown out of the process
 * (MADV_DONTNEED) and out of the page cache (POSIX_FADV_DONTNEED), until mincore(2) says that it is gone.
 *
 *   openat   system call with the string's address and directory DIRECTORY
 *   fault    touches another page, so that a page fault is counted, with the address in r12 and MARK in r13
 *   spin     runs in user mode for about a millisecond with the same registers
 *   open2    as openat, ROUNDS times without throwing anything out
 *   stack    as openat, with the frame pointer at the string, which is mapped at BASE
 *   wait     as openat, but the page is not there before ROUNDS other system calls have been made (userfaultfd)
 *   sleep    ROUNDS threads call pause(2), for ever
 *   exit     ROUNDS processes, one after the other, end by an exit_group(2)
 *
 * Prints the number of rounds before which the page was really gone.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DIRECTORY -12345
#define MARK 0x5ea1ed0000000001ul
#define BASE ((void *)0x600000000000ul)
#define PAGE 4096

static char *text;
static int file;

static int evict(void)
{
	unsigned char resident = 1;

	for (int tries = 0; tries < 1000 && (resident & 1); tries++) {
		madvise(text, PAGE, MADV_DONTNEED);
		posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
		if (mincore(text, PAGE, &resident))
			abort();
	}
	return !(resident & 1);
}

static void touch(char *page)
{
	madvise(page, PAGE, MADV_DONTNEED);
	asm volatile("mov %0, %%r12; mov %1, %%r13; movb $1, (%2); xor %%r13d, %%r13d"
		     : : "r"(text), "r"(MARK), "r"(page) : "r12", "r13", "memory");
}

static void spin(void)
{
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		long turns = 200000;

		asm volatile("mov %1, %%r12; mov %2, %%r13; 1: dec %0; jnz 1b; xor %%r13d, %%r13d"
			     : "+r"(turns) : "r"(text), "r"(MARK) : "r12", "r13", "memory");
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - start.tv_sec) * 1000000000l + now.tv_nsec - start.tv_nsec < 1000000);
}

static void walk(void)
{
	register long flags asm("r10") = 0;

	asm volatile("push %%rbp; mov %0, %%rbp; mov $257, %%eax; syscall; pop %%rbp"
		     : : "r"(text), "D"(DIRECTORY), "S"(text), "d"(O_RDONLY), "r"(flags)
		     : "rax", "rcx", "r11", "memory");
}

static void *blocked(void *page)
{
	syscall(SYS_openat, DIRECTORY, page, O_RDONLY, 0);
	return NULL;
}

static void wait_for(char *page, long others)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .range = { (unsigned long)page, PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { .dst = (unsigned long)page, .src = (unsigned long)text, .len = PAGE };
	int handler = syscall(SYS_userfaultfd, O_CLOEXEC);
	char message[64];
	pthread_t one;

	if (handler < 0 || ioctl(handler, UFFDIO_API, &api) || ioctl(handler, UFFDIO_REGISTER, &range) ||
	    pthread_create(&one, NULL, blocked, page)) {
		puts("no userfaultfd");
		exit(3);
	}
	/* once somebody waits for the page */
	if (read(handler, message, sizeof(message)) <= 0)
		abort();
	for (long n = 0; n < others; n++)
		syscall(SYS_openat, DIRECTORY, text, O_RDONLY, 0);
	puts("others done");
	fflush(stdout);
	getchar();
	if (ioctl(handler, UFFDIO_COPY, &copy))
		abort();
	pthread_join(one, NULL);
}

static void *forever(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void threads(long count)
{
	pthread_attr_t small;
	pthread_t one;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (long n = 0; n < count; n++)
		if (pthread_create(&one, &small, forever, NULL))
			abort();
}

static void children(long count)
{
	for (long n = 0; n < count; n++) {
		pid_t child = fork();

		if (!child)
			_exit(0);
		if (child < 0 || waitpid(child, NULL, 0) != child)
			abort();
	}
}

int main(int argc, char **argv)
{
	long rounds, gone = 0;
	char *other, *mode;

	if (argc != 4)
		return 2;
	mode = argv[1];
	rounds = atol(argv[2]);
	file = open(argv[3], O_RDONLY);
	text = mmap(BASE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0);
	other = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file < 0 || text == MAP_FAILED || other == MAP_FAILED)
		return 1;
	if (!strcmp(mode, "sleep"))
		threads(rounds);
	else if (!strcmp(mode, "exit"))
		children(rounds);
	else if (!strcmp(mode, "wait"))
		wait_for(other, rounds);
	else
		for (long n = 0; n < rounds; n++) {
			if (strcmp(mode, "open2"))
				gone += evict();
			if (!strncmp(mode, "open", 4))
				syscall(SYS_openat, DIRECTORY, text, O_RDONLY, 0);
			else if (!strcmp(mode, "fault"))
				touch(other);
			else if (!strcmp(mode, "stack"))
				walk();
			else
				spin();
		}
	printf("gone %ld\n", gone);
	fflush(stdout);
	if (!strcmp(mode, "sleep"))
		pause();
	return 0;
}
