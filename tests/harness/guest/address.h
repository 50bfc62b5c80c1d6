/*
 * Addresses as words, so that one program serves as client and server on both sides:
 *
 *   vsock:CID:PORT       connect, in a guest
 *   vsock-listen:PORT    listen, in a guest
 *   seqpacket:CID:PORT   connect for messages (SOCK_SEQPACKET), in a guest
 *   seqpacket-listen:PORT
 *   unix:PATH            connect
 *   unix-listen:PATH     listen; a file that is there is removed
 *   hybrid:PATH:PORT     connect, say CONNECT PORT, and wait for OK
 *   fd:NUMBER            a connection that whoever started the program made
 *
 * Before: the commands of probe.c. After: socket(2).
 * Rule:   the program for the host knows no vsock: there it would reach the hypervisor of the machine itself.
 */
#ifndef ADDRESS_H
#define ADDRESS_H

#include <stdbool.h>

bool address_listens(const char *address);
/* A connected or a listening socket, or -1 and errno. */
int address_connect(const char *address);
int address_listen(const char *address);
/* A connection, whichever way: says "listening" and "connected" on stdout. */
int address_open(const char *address);

#endif
