//! Listening for gdb, and a thread for each connection.

use super::address::GdbAddress;
use super::event_loop::{Ended, Message, serve};
use crate::session::{SessionError, SessionHandle};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;

/// A client that takes nothing for this long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the server cannot listen.
#[derive(Debug, Error)]
pub enum BindError {
    #[error("cannot listen for gdb on {0}: the address is in use; give another (--gdb :PORT)")]
    InUse(GdbAddress),
    #[error("cannot listen for gdb on {0}: {1}")]
    Other(GdbAddress, io::Error),
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    fn accept(&self) -> io::Result<(Stream, String)> {
        Ok(match self {
            Listener::Tcp(l) => {
                let (stream, from) = l.accept()?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                (Stream::Tcp(stream), from.to_string())
            }
            Listener::Unix(l, path) => {
                let (stream, _) = l.accept()?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                (Stream::Unix(stream), path.display().to_string())
            }
        })
    }
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Stream::Tcp(s) => Stream::Tcp(s.try_clone()?),
            Stream::Unix(s) => Stream::Unix(s.try_clone()?),
        })
    }
    fn shutdown(&self, how: Shutdown) {
        // Already closed is as good as closed.
        let _ = match self {
            Stream::Tcp(s) => s.shutdown(how),
            Stream::Unix(s) => s.shutdown(how),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.read(buf),
            Stream::Unix(s) => s.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.write(buf),
            Stream::Unix(s) => s.write(buf),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.flush(),
            Stream::Unix(s) => s.flush(),
        }
    }
}

/// A server that listens but does not accept yet.
pub struct GdbServer {
    listener: Listener,
    address: GdbAddress,
}

impl GdbServer {
    /// Starts to listen. Port 0 takes a free port; [`GdbServer::address`] tells which.
    pub fn bind(address: &GdbAddress) -> Result<Self, BindError> {
        let error = |e: io::Error| match e.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse(address.clone()),
            _ => BindError::Other(address.clone(), e),
        };
        match address {
            GdbAddress::Tcp { host, port } => {
                let places: Vec<_> = (host.as_str(), *port).to_socket_addrs().map_err(error)?.collect();
                let listener = TcpListener::bind(&places[..]).map_err(error)?;
                let port = listener.local_addr().map_err(error)?.port();
                let address = GdbAddress::Tcp { host: host.clone(), port };
                Ok(Self { listener: Listener::Tcp(listener), address })
            }
            GdbAddress::Unix(path) => {
                let listener = UnixListener::bind(path).map_err(error)?;
                Ok(Self { listener: Listener::Unix(listener, path.clone()), address: address.clone() })
            }
        }
    }

    /// Where it listens, as gdb's `target remote` takes it.
    pub fn address(&self) -> &GdbAddress {
        &self.address
    }

    /// Accepts clients until [`Running::finish`]. `notify` is told in a line when one comes or goes.
    pub fn serve(
        self,
        session: SessionHandle,
        notify: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Running, SessionError> {
        let shared = Arc::new(Shared::default());
        let (mine, address) = (Arc::clone(&shared), self.address.clone());
        let notify: Notify = Arc::new(notify);
        let accepting = spawn("gdb", move || self.accept_all(&mine, &session, &notify))?;
        Ok(Running { shared, address, accepting })
    }

    fn accept_all(&self, shared: &Shared, session: &SessionHandle, notify: &Notify) {
        while let Ok((stream, from)) = self.listener.accept() {
            if shared.closing.load(Ordering::Acquire) {
                break;
            }
            let (session, notify) = (session.clone(), Arc::clone(notify));
            let Ok(kept) = stream.try_clone() else { continue };
            if let Ok(thread) = spawn("gdb-client", move || connection(stream, &session, &from, &*notify)) {
                let mut connections = shared.lock();
                connections.retain(|(_, thread)| !thread.is_finished());
                connections.push((kept, thread));
            }
        }
        if let Listener::Unix(_, path) = &self.listener {
            // It is ours; that somebody removed it already does not matter.
            let _ = std::fs::remove_file(path);
        }
    }
}

type Notify = Arc<dyn Fn(&str) + Send + Sync>;

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, SessionError> {
    let thread = std::thread::Builder::new().name(name.into());
    thread.spawn(f).map_err(|e| SessionError::Thread(e.to_string()))
}

#[derive(Default)]
struct Shared {
    closing: AtomicBool,
    connections: Mutex<Vec<(Stream, JoinHandle<()>)>>,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Stream, JoinHandle<()>)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server at work.
pub struct Running {
    shared: Arc<Shared>,
    address: GdbAddress,
    accepting: JoinHandle<()>,
}

impl Running {
    pub fn address(&self) -> &GdbAddress {
        &self.address
    }

    /// Stops listening and ends every connection. If the guest's run is over, clients waiting for it are told first.
    pub fn finish(self) {
        self.shared.closing.store(true, Ordering::Release);
        // Wakes the accepting thread.
        let woken = match &self.address {
            GdbAddress::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).is_ok(),
            GdbAddress::Unix(path) => UnixStream::connect(path).is_ok(),
        };
        let connections = std::mem::take(&mut *self.shared.lock());
        for (stream, _) in &connections {
            stream.shutdown(Shutdown::Read);
        }
        // A connection thread that panicked has nothing more to say.
        for (_, thread) in connections {
            let _ = thread.join();
        }
        if woken {
            let _ = self.accepting.join();
        }
    }
}

/// Serves one client on this thread, reading on another.
fn connection(stream: Stream, session: &SessionHandle, from: &str, notify: &dyn Fn(&str)) {
    let Ok(reading) = stream.try_clone() else { return };
    let Ok(closing) = stream.try_clone() else { return };
    let (post, queue) = mpsc::channel();
    let bytes = post.clone();
    let Ok(reader) = spawn("gdb-read", move || read_all(reading, &bytes)) else { return };
    let ended = serve(session, stream, &queue, post);
    closing.shutdown(Shutdown::Both);
    let _ = reader.join();
    match ended {
        Ok(Ended::Silent) => {}
        Ok(Ended::Detached) => notify(&format!("gdb at {from} detached")),
        Ok(Ended::Killed) => notify(&format!("gdb at {from} ended the run")),
        Ok(Ended::Exited(exit)) => notify(&format!("gdb at {from} disconnected: {exit}")),
        Err(e) => notify(&format!("gdb at {from} disconnected: {e}")),
    }
}

fn read_all(mut stream: Stream, post: &mpsc::Sender<Message>) {
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if post.send(Message::Bytes(buf[..n].to_vec())).is_err() {
                    return;
                }
            }
        }
    }
    // Nobody may be listening any more.
    let _ = post.send(Message::Closed);
}
