//! Job: a small guest as a program, for tests that need a VM in some namespace but no real one.
//! Before: a test starts it, for instance with `ip netns exec`.
//! After: it attaches to a vhost-user socket as QEMU would, and serves and makes connections as it is told.
//! Rules: one line on stdout per event; ends with its stdin.
//!
//! ```text
//! vsock-guest SOCKET [ECHO_PORT | messages:ECHO_PORT | telling:ECHO_PORT ...]
//! stdout: attached CID | reply TEXT | error WHY | window BYTES
//! stdin:  connect PORT TEXT | messages PORT WORD ... | window PORT TEXT
//! ```
//!
//! `messages` is for message sockets (SOCK_SEQPACKET): each word is one, and the reply has those that came back. `telling`
//! first sends a line with the peer's port and window; `window` is `connect`, and first says the window that the host gives.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;
use vsock_driver::deadline::Deadline;
use vsock_driver::front_end::FrontEnd;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::{SEQPACKET, SHUTDOWN_SEND, STREAM};
use vsock_driver::linux::{Kernel, Received, Rules, SocketId};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(socket) = args.next() else { return fail("usage: vsock-guest SOCKET [ECHO_PORT ...]") };
    let mut ports = Vec::new();
    for arg in args {
        let (kind, tells, number) = match arg.split_once(':') {
            Some(("messages", number)) => (SEQPACKET, false, number),
            Some(("telling", number)) => (STREAM, true, number),
            _ => (STREAM, false, &arg[..]),
        };
        let Ok(port) = number.parse::<u32>() else { return fail(&format!("{arg} is no port")) };
        ports.push(EchoPort { kind, port, tells });
    }
    let guest = match FrontEnd::connect(&socket).and_then(|front| Guest::boot(front, Setup::default())) {
        Ok(guest) => guest,
        Err(error) => return fail(&format!("refused: {error}")),
    };
    say(&format!("attached {}", guest.cid));
    serve(Kernel::new(guest, Rules::linux_7()), &ports, &commands());
    ExitCode::SUCCESS
}

/// A port whose connections get back what they send.
struct EchoPort {
    /// Streams or message sockets.
    kind: u16,
    /// Its number.
    port: u32,
    /// They are told of themselves first.
    tells: bool,
}

/// Ends with a message.
fn fail(why: &str) -> ExitCode {
    say(why);
    ExitCode::FAILURE
}

/// One line for the test.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A test that is gone needs no lines.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The lines of stdin as they come.
fn commands() -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Serves echoes and does what it is told, until stdin ends.
fn serve(mut kernel: Kernel, ports: &[EchoPort], commands: &Receiver<String>) {
    let mut open = Vec::new();
    for each in ports {
        kernel.listen_as(each.kind, each.port);
    }
    loop {
        kernel.pump();
        for each in ports {
            let Some(id) = kernel.try_accept(each.port) else { continue };
            if each.tells {
                let socket = kernel.socket(id);
                let line = format!("{} {}\n", socket.peer, socket.peer_buf_alloc);
                kernel.send_all(id, line.as_bytes());
            }
            open.push(id);
        }
        open.retain(|&id| echo(&mut kernel, id));
        match commands.try_recv() {
            Ok(line) => obey(&mut kernel, &line),
            Err(TryRecvError::Empty) => {
                kernel.guest.wait(Deadline::after(Duration::from_millis(2)));
            }
            Err(TryRecvError::Disconnected) => return,
        }
    }
}

/// Sends back what came; `false` once the conversation is over.
fn echo(kernel: &mut Kernel, id: SocketId) -> bool {
    let received = if kernel.socket(id).kind == SEQPACKET {
        match kernel.try_recv_message(id) {
            // What it could receive it can send, unless the host gives less room than it takes.
            Ok(message) => return kernel.send_message(id, &message.bytes).is_ok(),
            Err(other) => other,
        }
    } else {
        kernel.recv(id, 65536)
    };
    match received {
        Received::Nothing => true,
        Received::Data(bytes) => {
            kernel.send_all(id, &bytes);
            true
        }
        Received::End | Received::Fault(_) => {
            kernel.close(id);
            false
        }
    }
}

/// Connects, sends the text, as bytes or word by word as messages, and the end, and says what came back.
fn obey(kernel: &mut Kernel, line: &str) {
    let mut words = line.splitn(3, ' ');
    let (command, Some(port), Some(text)) = (words.next(), words.next(), words.next()) else {
        return say(&format!("error {line} is no command"));
    };
    let Ok(port) = port.parse() else { return say("error no port") };
    let converse = match command {
        Some("connect") => kernel.connect(port).map(|id| converse(kernel, id, text)),
        Some("window") => kernel.connect(port).map(|id| {
            say(&format!("window {}", kernel.socket(id).peer_buf_alloc));
            converse(kernel, id, text)
        }),
        Some("messages") => kernel.connect_as(SEQPACKET, port).map(|id| converse_in_messages(kernel, id, text)),
        _ => return say(&format!("error {line} is no command")),
    };
    match converse {
        Ok(reply) => say(&format!("reply {reply}")),
        Err(ended) => say(&format!("error {ended:?}")),
    }
}

/// A conversation on a stream; what came back.
fn converse(kernel: &mut Kernel, id: SocketId, text: &str) -> String {
    kernel.send_all(id, text.as_bytes());
    kernel.shutdown(id, SHUTDOWN_SEND);
    let reply = kernel.recv_to_end(id);
    kernel.close(id);
    String::from_utf8_lossy(&reply).into_owned()
}

/// One in messages.
fn converse_in_messages(kernel: &mut Kernel, id: SocketId, text: &str) -> String {
    for word in text.split(' ') {
        // A word is shorter than any window.
        let _ = kernel.send_message(id, word.as_bytes());
    }
    kernel.shutdown(id, SHUTDOWN_SEND);
    let mut replies = Vec::new();
    while let Ok(message) = kernel.recv_message(id) {
        replies.push(String::from_utf8_lossy(&message.bytes).into_owned());
    }
    kernel.close(id);
    replies.join(" ")
}
