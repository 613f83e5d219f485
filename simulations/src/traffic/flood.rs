//! A server that answers one call with more datagrams than the caller's uplink can carry.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::TrafficError;

/// Between two bursts; also how soon it notices that it shall end.
const TICK: Duration = Duration::from_millis(2);
/// Most datagrams of one burst: one that was held up does not make up for it.
const BURST_MAX: u64 = 1000;

/// A running flood source; it ends when dropped.
#[derive(Debug)]
pub struct Flood {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Where to call it; the caller is flooded from then on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts a flood source at `address`: to whoever called it last it sends `rate` datagrams of `size` bytes of
/// payload per second.
///
/// # Errors
/// When it cannot listen.
pub fn flood(address: SocketAddr, rate: f64, size: usize) -> Result<Flood, TrafficError> {
    let failed = |source| TrafficError::Listen { address, source };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    socket.set_read_timeout(Some(TICK)).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
    let thread = std::thread::spawn(move || pour(&socket, rate, &vec![0x55; size], &stopped, &count));
    Ok(Flood { address, stop, sent, thread: Some(thread) })
}

fn pour(socket: &UdpSocket, rate: f64, datagram: &[u8], stop: &AtomicBool, sent: &AtomicU64) {
    let caller = loop {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match socket.recv_from(&mut [0; 64]) {
            Ok((_, caller)) => break caller,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    };
    let mut last = Instant::now();
    let mut owed = 0.0;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
        owed += rate * last.elapsed().as_secs_f64();
        last = Instant::now();
        let burst = (owed as u64).min(BURST_MAX);
        owed = (owed - burst as f64).min(1.0);
        for _ in 0..burst {
            // A full socket buffer is a datagram lost, as others on the way.
            let _ = socket.send_to(datagram, caller);
        }
        sent.fetch_add(burst, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_floods_who_called_and_ends() {
        let source = flood(SocketAddr::from(([127, 0, 0, 1], 0)), 5000.0, 100).expect("it listens");
        assert_eq!(source.sent(), 0);
        let caller = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        caller.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        caller.send_to(b"call", source.address()).expect("sent");
        for _ in 0..50 {
            assert_eq!(caller.recv(&mut [0; 200]).expect("flooded"), 100);
        }
        drop(source);
    }
}
