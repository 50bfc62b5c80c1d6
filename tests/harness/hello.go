// The Go program of the tests: AF_VSOCK with the runtime's own network poller, as Go's vsock packages do it.
//
//	hello connect CID PORT      sends stdin, then writes what comes
//	hello listen PORT           says "listening", answers one connection with what came
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

const (
	afVsock   = 40
	anyNumber = 0xffffffff
)

type address struct {
	family, reserved uint16
	port, cid        uint32
	flags            uint8
	zero             [3]uint8
}

func call(trap, fd uintptr, at *address) syscall.Errno {
	_, _, errno := syscall.Syscall(trap, fd, uintptr(unsafe.Pointer(at)), unsafe.Sizeof(*at))
	return errno
}

func check(what string, err error) {
	if err != nil && err != syscall.Errno(0) {
		fmt.Println(what, err)
		os.Exit(1)
	}
}

func number(text string) uint32 {
	value, err := strconv.ParseUint(text, 10, 32)
	check(text, err)
	return uint32(value)
}

// A socket that does not block, which the runtime therefore watches with epoll.
func newSocket() *os.File {
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	check("socket", err)
	return os.NewFile(uintptr(fd), "vsock")
}

func connect(cid, port uint32) *os.File {
	file := newSocket()
	raw, err := file.SyscallConn()
	check("conn", err)
	var result error
	started := false
	check("wait", raw.Write(func(fd uintptr) bool {
		if !started {
			started = true
			errno := call(syscall.SYS_CONNECT, fd, &address{family: afVsock, port: port, cid: cid})
			if errno == syscall.EINPROGRESS {
				return false // the runtime waits until it is writable
			}
			if errno != 0 {
				result = errno
			}
			return true
		}
		code, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err == nil && code != 0 {
			err = syscall.Errno(code)
		}
		if err == nil {
			at, size := address{}, uint32(unsafe.Sizeof(address{}))
			_, _, errno := syscall.Syscall(
				syscall.SYS_GETPEERNAME, fd, uintptr(unsafe.Pointer(&at)), uintptr(unsafe.Pointer(&size)))
			if errno == syscall.ENOTCONN {
				return false
			}
		}
		result = err
		return true
	}))
	check("connect", result)
	return file
}

func accept(listener *os.File) *os.File {
	raw, err := listener.SyscallConn()
	check("conn", err)
	var got uintptr
	check("wait", raw.Read(func(fd uintptr) bool {
		flags := uintptr(syscall.SOCK_NONBLOCK | syscall.SOCK_CLOEXEC)
		result, _, errno := syscall.Syscall6(syscall.SYS_ACCEPT4, fd, 0, 0, flags, 0, 0)
		if errno == syscall.EAGAIN {
			return false
		}
		if errno != 0 {
			check("accept", errno)
		}
		got = result
		return true
	}))
	return os.NewFile(got, "vsock")
}

func shutdown(file *os.File) {
	raw, err := file.SyscallConn()
	check("conn", err)
	check("control", raw.Control(func(fd uintptr) {
		check("shutdown", syscall.Shutdown(int(fd), syscall.SHUT_WR))
	}))
}

func main() {
	if os.Args[1] == "connect" {
		file := connect(number(os.Args[2]), number(os.Args[3]))
		_, err := io.Copy(file, os.Stdin)
		check("send", err)
		shutdown(file)
		_, err = io.Copy(os.Stdout, file)
		check("receive", err)
		return
	}
	listener := newSocket()
	raw, err := listener.SyscallConn()
	check("conn", err)
	check("control", raw.Control(func(fd uintptr) {
		check("bind", call(syscall.SYS_BIND, fd, &address{family: afVsock, port: number(os.Args[2]), cid: anyNumber}))
		check("listen", syscall.Listen(int(fd), 16))
	}))
	fmt.Println("listening")
	file := accept(listener)
	data, err := io.ReadAll(file)
	check("receive", err)
	_, err = file.Write(data)
	check("send", err)
	check("close", file.Close())
}
