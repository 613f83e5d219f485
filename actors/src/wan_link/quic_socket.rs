//! QUIC's view of a link: what the link's driver picked out of the socket comes in through a
//! bounded queue, what QUIC sends goes straight to the socket.
//!
//! A dead or missing socket shows to QUIC as loss: an I/O error would end its endpoint, and with it
//! every connection of the link.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use mwb_proto::buf::PacketBuf;
use quinn::udp;
use quinn::{AsyncUdpSocket, UdpPoller};

use super::Link;
use super::socket::{SendFailure, unspecified};

/// Datagrams that may wait for QUIC: handshakes of some dozens of peers at once. More are dropped
/// and counted; QUIC sends them again.
pub(crate) const QUIC_INBOX_MAX: usize = 512;

/// One datagram for QUIC.
pub(crate) struct QuicDatagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: Option<IpAddr>,
    pub(crate) ecn: Option<quinn_udp::EcnCodepoint>,
    pub(crate) data: PacketBuf,
}

/// The queue from the link's driver to QUIC.
pub(crate) struct QuicInbox {
    queue: ArrayQueue<QuicDatagram>,
    waker: AtomicWaker,
}

impl QuicInbox {
    pub(crate) fn new() -> Self {
        Self { queue: ArrayQueue::new(QUIC_INBOX_MAX), waker: AtomicWaker::new() }
    }

    /// False when it is full.
    pub(crate) fn push(&self, datagram: QuicDatagram) -> bool {
        self.queue.push(datagram).is_ok()
    }

    /// Called once after a run of pushes.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }
}

/// The abstract socket of a link's QUIC endpoint. It refers to the link, not to the socket: the
/// socket may be replaced underneath.
pub(crate) struct QuicSocket(pub(crate) Arc<Link>);

impl fmt::Debug for QuicSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuicSocket({})", self.0.name())
    }
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { link: Arc::clone(&self.0), wait: None })
    }

    fn try_send(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        let Some(socket) = self.0.socket() else { return Ok(()) };
        let ecn = transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8));
        let out = quinn_udp::Transmit {
            destination: socket.wire(transmit.destination),
            ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        match socket.transmit(&out) {
            Ok(()) => Ok(()),
            Err(SendFailure::Blocked) => Err(io::ErrorKind::WouldBlock.into()),
            Err(failure) => {
                self.0.note_send_failure(failure);
                Ok(())
            }
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let inbox = self.0.quic_inbox();
        for registered in [false, true] {
            let mut count = 0;
            while count < buffers.len().min(meta.len()) {
                let Some(datagram) = inbox.queue.pop() else { break };
                if datagram.data.len() > buffers[count].len() {
                    continue;
                }
                buffers[count][..datagram.data.len()].copy_from_slice(&datagram.data);
                meta[count] = udp::RecvMeta {
                    // The endpoint compares addresses; it must see those of its own family.
                    addr: self.0.socket().map_or(datagram.from, |socket| socket.wire(datagram.from)),
                    len: datagram.data.len(),
                    stride: datagram.data.len(),
                    ecn: datagram.ecn.and_then(|ecn| udp::EcnCodepoint::from_bits(ecn as u8)),
                    dst_ip: datagram.to,
                };
                count += 1;
            }
            if count > 0 {
                self.0.counters().quic_received.fetch_add(count as u64, Ordering::Relaxed);
                return Poll::Ready(Ok(count));
            }
            if !registered {
                // Look once more after registering: a datagram may have come in between.
                inbox.waker.register(cx.waker());
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        let unbound = SocketAddr::new(unspecified(self.0.is_dual()), 0);
        Ok(self.0.socket().map_or(unbound, |socket| socket.local_addr()))
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

struct Poller {
    link: Arc<Link>,
    wait: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(socket) = this.link.socket() else { return Poll::Ready(Ok(())) };
        let wait = this.wait.get_or_insert_with(|| Box::pin(async move { socket.writable().await }));
        let result = ready!(wait.as_mut().poll(cx));
        this.wait = None;
        Poll::Ready(result)
    }
}
