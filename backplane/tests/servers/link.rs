//! A port that leads to a server, over connections that can be cut or fall silent.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    is_cut: bool,
    is_silent: bool,
    is_over: bool,
    /// Both ends of every connection.
    streams: Vec<TcpStream>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Everything that arrives at its port goes on to the server's, and back.
pub struct Link {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Link {
    /// Leads to this port, from the start.
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, super::free_port())).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, server, &state));
        Self { port, shared }
    }

    /// Ends all connections, and new ones at once.
    pub fn cut(&self) {
        let mut state = self.shared.lock();
        state.is_cut = true;
        state.end_all();
    }

    /// Ends all connections; new ones are as before.
    pub fn cut_once(&self) {
        self.shared.lock().end_all();
    }

    /// Connections stay, but nothing arrives any more.
    pub fn silence(&self) {
        self.shared.lock().is_silent = true;
    }

    /// As at the start; what was held back in silence arrives now.
    pub fn mend(&self) {
        let mut state = self.shared.lock();
        (state.is_cut, state.is_silent) = (false, false);
        self.shared.changed.notify_all();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        (state.is_over, state.is_silent) = (true, false);
        state.end_all();
        self.shared.changed.notify_all();
        drop(state);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds this")
    }

    /// Waits until bytes may go on.
    fn pass(&self) {
        let state = self.lock();
        let passes = self.changed.wait_while(state, |state| state.is_silent && !state.is_over);
        drop(passes.expect("no thread panics while it holds this"));
    }
}

impl State {
    fn end_all(&mut self) {
        for stream in self.streams.drain(..) {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, server: u16, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        if shared.lock().is_over {
            return;
        }
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { continue };
        let mut state = shared.lock();
        if state.is_cut {
            continue;
        }
        let ends = [(&client, &server), (&server, &client)];
        for (from, to) in ends {
            state.streams.push(from.try_clone().expect("a descriptor"));
            let (from, to) = (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
            let shared = Arc::clone(shared);
            std::thread::spawn(move || carry(from, to, &shared));
        }
    }
}

/// Carries bytes one way until either end closes.
fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                shared.pass();
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // Either may have ended already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
