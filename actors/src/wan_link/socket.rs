//! The UDP socket of a link: bound to its device, with large buffers, batched both ways.
//!
//! quinn-udp 0.6.3 loses the ECN bits of a merged (GRO) receive because its control buffer is too
//! small for the time stamp as well; of the two the time stamp is worth more here. Hence received
//! CE is counted only for datagrams that came alone, and data is sent not-ECT: a mark that would
//! not be seen must not be asked for.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use arc_swap::ArcSwap;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::readiness;

/// Wanted size of the kernel's buffers each way: 50 ms at 1 Gbit/s with room for bursts.
pub const BUFFER_BYTES: usize = 8 << 20;
/// Most bytes of one segmented send; the kernel takes 65,507.
const SEND_BYTES_MAX: usize = 65_000;
/// Most segments of one segmented send.
const SEND_SEGMENTS_MAX: usize = 64;

/// How to open a link's socket.
#[derive(Clone, Debug)]
pub struct SocketSpec {
    /// Where to bind: an address of the device, or the unspecified address of the wanted family.
    /// The unspecified IPv6 address also carries IPv4.
    pub bind: SocketAddr,
    /// Device that all datagrams must use.
    pub device: Option<String>,
    /// Firewall mark, for hosts whose default route goes into the tunnel.
    pub mark: Option<u32>,
}

/// What to do about a failed send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFailure {
    /// The socket's buffer is full: wait until it is writable.
    Blocked,
    /// The device's queue is full: wait a moment.
    Congested,
    /// Segmentation failed; the settings were renewed, send one by one.
    Segmentation,
    /// Larger than the device's or the path's MTU.
    TooLong,
    /// No way to the destination now.
    Unreachable,
    /// The device has gone: the socket must be opened anew.
    DeviceGone,
    /// Anything else.
    Other,
}

/// An open socket. Shared by the driver that receives, the one that sends, and QUIC.
pub struct LinkSocket {
    socket: Socket,
    state: ArcSwap<UdpSocketState>,
    readable: AsyncFd<OwnedFd>,
    local: SocketAddr,
}

impl LinkSocket {
    /// Opens and binds a socket.
    ///
    /// # Errors
    /// The system's, among them `ENODEV` when the device does not exist (yet).
    pub fn open(spec: &SocketSpec) -> io::Result<Self> {
        let dual = spec.bind.is_ipv6();
        let domain = if dual { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if dual {
            socket.set_only_v6(false)?;
        }
        if let Some(device) = &spec.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if let Some(mark) = spec.mark {
            // Needs CAP_NET_ADMIN. Without it the device binding alone must do.
            if let Err(error) = socket.set_mark(mark) {
                tracing::debug!(%error, "the socket gets no firewall mark");
            }
        }
        enlarge(&socket);
        socket.bind(&spec.bind.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        let readable = readiness::watch(&socket, Interest::READABLE)?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { socket, state: ArcSwap::from_pointee(state), readable, local })
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Readiness for receiving.
    pub(crate) fn readable(&self) -> &AsyncFd<OwnedFd> {
        &self.readable
    }

    /// Receives up to one buffer per slice, each holding one datagram or several merged ones.
    ///
    /// # Errors
    /// The system's; `WouldBlock` when nothing waits.
    pub fn receive(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let count = self.state.load().recv((&self.socket).into(), buffers, meta)?;
        for meta in &mut meta[..count] {
            meta.addr = canonical(meta.addr);
            meta.dst_ip = meta.dst_ip.map(|ip| ip.to_canonical());
        }
        Ok(count)
    }

    /// How many datagrams of `size` bytes one [`send`](Self::send) takes. May change at any time.
    pub fn segments_max(&self, size: usize) -> usize {
        let offered = self.state.load().max_gso_segments().min(SEND_SEGMENTS_MAX);
        offered.min(SEND_BYTES_MAX / size.max(1)).max(1)
    }

    /// Sends datagrams of `size` bytes each (the last may be shorter) lying back to back.
    ///
    /// # Errors
    /// What to do about it.
    pub fn send(
        &self,
        contents: &[u8],
        size: usize,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> Result<(), SendFailure> {
        let segment_size = (size < contents.len()).then_some(size);
        let transmit =
            Transmit { destination: self.wire(to), ecn: None, contents, segment_size, src_ip: from };
        self.transmit(&transmit)
    }

    /// Sends as described by `transmit`, whose destination must come from [`wire`](Self::wire).
    ///
    /// # Errors
    /// What to do about it.
    pub fn transmit(&self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        let Err(error) = self.state.load().try_send((&self.socket).into(), transmit) else {
            return Ok(());
        };
        let failure = classify(&error);
        if failure == SendFailure::Segmentation || self.state.load().max_gso_segments() <= 1 {
            // One refused send switches segmentation off in quinn-udp for good, whatever its cause.
            if let Ok(state) = UdpSocketState::new((&self.socket).into()) {
                self.state.store(state.into());
            }
        }
        Err(failure)
    }

    /// `address` as this socket's family wants it.
    pub fn wire(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.local.is_ipv6() => {
                SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => address,
        }
    }

    /// Returns when a send that was [`Blocked`](SendFailure::Blocked) may be tried again.
    ///
    /// # Errors
    /// When the reactor fails.
    pub async fn writable(&self) -> io::Result<()> {
        readiness::writable(&self.socket).await
    }
}

impl std::fmt::Debug for LinkSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LinkSocket({})", self.local)
    }
}

/// An IPv4-mapped address as the IPv4 address it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The unspecified address for IPv4 alone or for both families.
pub fn unspecified(dual: bool) -> IpAddr {
    if dual { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// What the kernel gives a link's socket here and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOffer {
    /// Receive buffer, bytes, of [`BUFFER_BYTES`] asked for.
    pub receive_bytes: usize,
    /// Send buffer, bytes, of as many.
    pub send_bytes: usize,
    /// Datagrams that one send takes (UDP segmentation); 1 without.
    pub segments_max: usize,
}

/// Tries what the kernel gives a link's socket. Nothing is sent.
///
/// # Errors
/// When there is no UDP socket to be had.
pub fn offer() -> io::Result<SocketOffer> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    enlarge(&socket);
    // The kernel counts its own bookkeeping in and says twice what was asked for (socket(7)).
    Ok(SocketOffer {
        receive_bytes: socket.recv_buffer_size()? / 2,
        send_bytes: socket.send_buffer_size()? / 2,
        segments_max: UdpSocketState::new((&socket).into())?.max_gso_segments(),
    })
}

fn enlarge(socket: &Socket) {
    // The forced variants pass the system's limit but need CAP_NET_ADMIN.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    }
    if rustix::net::sockopt::set_socket_send_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    }
}

fn classify(error: &io::Error) -> SendFailure {
    if error.kind() == io::ErrorKind::WouldBlock {
        return SendFailure::Blocked;
    }
    match Errno::from_io_error(error) {
        Some(Errno::NOBUFS | Errno::NOMEM) => SendFailure::Congested,
        Some(Errno::IO | Errno::INVAL) => SendFailure::Segmentation,
        Some(Errno::MSGSIZE) => SendFailure::TooLong,
        Some(
            Errno::NETUNREACH
            | Errno::HOSTUNREACH
            | Errno::NETDOWN
            | Errno::PERM
            | Errno::ACCESS
            | Errno::ADDRNOTAVAIL
            | Errno::CONNREFUSED,
        ) => SendFailure::Unreachable,
        Some(Errno::NODEV | Errno::NXIO | Errno::BADF) => SendFailure::DeviceGone,
        _ => SendFailure::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        let of = |errno: Errno| classify(&errno.into());
        assert_eq!(of(Errno::AGAIN), SendFailure::Blocked);
        assert_eq!(of(Errno::NOBUFS), SendFailure::Congested);
        assert_eq!(of(Errno::INVAL), SendFailure::Segmentation);
        assert_eq!(of(Errno::NETUNREACH), SendFailure::Unreachable);
        assert_eq!(of(Errno::NODEV), SendFailure::DeviceGone);
    }

    #[tokio::test]
    async fn a_dual_stack_socket_talks_to_an_ipv4_one() {
        let v4 = LinkSocket::open(&SocketSpec {
            bind: "127.0.0.1:0".parse().expect("address"),
            device: None,
            mark: None,
        })
        .expect("IPv4 socket");
        let spec = SocketSpec { bind: SocketAddr::new(unspecified(true), 0), device: None, mark: None };
        let Ok(dual) = LinkSocket::open(&spec) else {
            return; /* a host without IPv6 */
        };
        dual.send(b"0123456789", 4, v4.local_addr(), None).expect("sent");
        let mut storage = vec![0_u8; 65_536];
        let mut meta = [RecvMeta::default()];
        let mut got = Vec::new();
        while got.len() < 10 {
            let mut guard = v4.readable().readable().await.expect("readable");
            let received = guard.try_io(|_| v4.receive(&mut [IoSliceMut::new(&mut storage)], &mut meta));
            let Ok(received) = received else { continue };
            received.expect("received");
            assert_eq!(meta[0].addr, SocketAddr::new("127.0.0.1".parse().expect("ip"), dual.local.port()));
            assert!(meta[0].timestamp.is_some(), "the kernel stamps arrivals");
            assert_eq!(meta[0].stride.min(4), meta[0].len.min(4).min(meta[0].stride));
            got.extend_from_slice(&storage[..meta[0].len]);
        }
        assert_eq!(got, b"0123456789");
    }
}
