//! `AF_PACKET` sockets, batches of frames, and the clocks of the emulator: the only place of the
//! emulator that talks to the kernel by hand.
#![allow(
    unsafe_code,
    reason = "no safe crate offers recvmmsg with time stamps, sendmmsg or packet socket options"
)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_void};
use mwb_proto::time::Time;

/// Frames per system call.
pub(super) const BATCH: usize = 64;
/// Receive buffer asked for. A frame of 1,500 bytes costs the kernel about 2.3 kB of it.
const RECEIVE_BUFFER: c_int = 16 << 20;
const SEND_BUFFER: c_int = 8 << 20;
/// The shortest slice the kernel grants.
const SLICE: Duration = Duration::from_micros(100);
/// Room for one time stamp and whatever else the kernel might add.
const CONTROL_BYTES: usize = 128;

/// A frame in a buffer of a pool.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) buffer: Box<[u8]>,
    pub(super) len: usize,
}

/// A raw socket bound to one interface, for all protocols.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens a socket on the interface with this index in the network namespace of this thread.
    pub fn open(index: u32) -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
        };
        check(fd)?;
        // SAFETY: `fd` is a new descriptor that nobody else owns.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } };
        socket.option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.option(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        socket.option(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        // FORCE goes past net.core.rmem_max and needs CAP_NET_ADMIN in the first namespace.
        for (force, plain, size) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER),
        ] {
            socket
                .option(libc::SOL_SOCKET, force, size)
                .or_else(|_| socket.option(libc::SOL_SOCKET, plain, size))?;
        }
        // SAFETY: an all-zero sockaddr_ll is a valid value of this plain C struct.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = c_int::try_from(index).map_err(io::Error::other)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `address` lives through the call and `length` is its size.
        check(unsafe { libc::bind(socket.raw(), ptr::from_ref(&address).cast(), length) })?;
        Ok(socket)
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn option(&self, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
        let length = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: `value` is a c_int that lives through the call, and `length` is its size.
        check(unsafe { libc::setsockopt(self.raw(), level, name, ptr::from_ref(&value).cast(), length) })
            .map(drop)
    }

    /// Frames the kernel dropped at this socket since the last call.
    pub(super) fn take_drops(&self) -> u64 {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: `stats` is writable for `length` bytes through the call.
        let done = unsafe {
            libc::getsockopt(
                self.raw(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                ptr::from_mut(&mut stats).cast(),
                &raw mut length,
            )
        };
        if done == 0 { u64::from(stats.tp_drops) } else { 0 }
    }

    /// Reads at most [`BATCH`] frames into `buffers`. `each` is given the index of a buffer, the
    /// frame's length on the wire (greater than the buffer if it was cut) and the kernel's time stamp
    /// in `CLOCK_REALTIME`. Returns how many; zero when nothing waits.
    pub(super) fn receive(
        &self,
        buffers: &mut [Box<[u8]>],
        mut each: impl FnMut(usize, usize, Option<Duration>),
    ) -> io::Result<usize> {
        let count = buffers.len().min(BATCH);
        let mut control = [[0u64; CONTROL_BYTES / 8]; BATCH];
        // SAFETY: all-zero iovec and mmsghdr are valid values of these plain C structs.
        let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        for (i, buffer) in buffers.iter_mut().take(count).enumerate() {
            vectors[i] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut headers[i].msg_hdr;
            header.msg_iov = &raw mut vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = control[i].as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES as _;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: the first `count` headers point to distinct buffers, vectors and control blocks that
        // live through the call; no timeout is passed.
        let received =
            unsafe { libc::recvmmsg(self.raw(), headers.as_mut_ptr(), count as u32, flags, ptr::null_mut()) };
        if received < 0 {
            return would_block(io::Error::last_os_error());
        }
        for (i, header) in headers.iter().take(received as usize).enumerate() {
            each(i, header.msg_len as usize, time_stamp(&header.msg_hdr));
        }
        Ok(received as usize)
    }

    /// Sends frames and says how many the kernel took, which may be fewer, and why it stopped.
    pub(super) fn send(&self, frames: &[Frame]) -> (usize, Option<io::Error>) {
        let count = frames.len().min(BATCH);
        // SAFETY: all-zero iovec and mmsghdr are valid values of these plain C structs.
        let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        for (i, frame) in frames.iter().take(count).enumerate() {
            let bytes = &frame.buffer[..frame.len];
            vectors[i] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            headers[i].msg_hdr.msg_iov = &raw mut vectors[i];
            headers[i].msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the first `count` headers point to vectors and bytes that live through the call; the
        // kernel only reads the bytes.
        let sent =
            unsafe { libc::sendmmsg(self.raw(), headers.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT) };
        if sent < 0 { (0, Some(io::Error::last_os_error())) } else { (sent as usize, None) }
    }
}

/// The time stamp among the control messages of a received message.
fn time_stamp(header: &libc::msghdr) -> Option<Duration> {
    // SAFETY: the kernel filled `msg_control` up to `msg_controllen`, and the CMSG functions stay
    // inside; a message of this level and type holds a timespec, read without assuming alignment.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_TIMESTAMPNS {
                let stamp = libc::CMSG_DATA(message).cast::<libc::timespec>().read_unaligned();
                return Some(Duration::new(stamp.tv_sec.try_into().ok()?, stamp.tv_nsec.try_into().ok()?));
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn would_block(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable through the call. Both clocks used here always exist.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// `CLOCK_MONOTONIC`.
pub(super) fn monotonic() -> Time {
    Time::from_nanos(clock(libc::CLOCK_MONOTONIC).as_nanos() as u64)
}

/// `CLOCK_REALTIME`, the clock of the kernel's time stamps.
pub(super) fn realtime() -> Duration {
    clock(libc::CLOCK_REALTIME)
}

/// Sleeps until `at` on `CLOCK_MONOTONIC`; a signal may end it early.
pub(super) fn sleep_until(at: Time) {
    let nanos = at.as_nanos();
    let at = libc::timespec {
        tv_sec: (nanos / 1_000_000_000) as libc::time_t,
        tv_nsec: (nanos % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: `at` lives through the call; the rest is not asked for.
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const at, ptr::null_mut());
    }
}

/// Waits until one of the descriptors is readable or the time is over (`None` is for ever), and marks
/// those that are.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) {
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs() as libc::time_t,
        tv_nsec: t.subsec_nanos() as libc::c_long,
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    for fd in fds.iter_mut() {
        fd.revents = 0;
    }
    // SAFETY: `fds` is writable for its length and `timeout` null or alive through the call. On an
    // error, which can only be a signal, no mark was set.
    unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, ptr::null()) };
}

/// Asks for exact wake-ups of this thread, so that a busy machine does not make the emulated links
/// late: timers without slack, and the real-time scheduler. Says whether it got that; where it is not
/// allowed the thread gets the shortest time slice, which the fair scheduler serves first.
pub(super) fn be_punctual(real_time: bool) -> bool {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: an all-zero sched_attr is a valid value of this plain C struct. PR_SET_TIMERSLACK takes a
    // number; `parameters` and `slice`, whose size is in it, live through the calls.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong);
        if real_time && libc::sched_setscheduler(0, policy, &raw const parameters) == 0 {
            return true;
        }
        let mut slice: libc::sched_attr = mem::zeroed();
        slice.size = size_of::<libc::sched_attr>() as u32;
        slice.sched_runtime = SLICE.as_nanos() as u64;
        // Kernels before 6.12 take no notice of it.
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const slice, 0);
    }
    false
}

/// A counter to poll on, to wake the emulator.
pub(super) fn event() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Wakes whoever polls `event`.
pub(super) fn signal(event: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight readable bytes. A failure means the counter is full, and then it is readable.
    unsafe { libc::write(event.as_raw_fd(), ptr::from_ref(&one).cast::<c_void>(), 8) };
}

/// Sets the counter back to zero.
pub(super) fn clear(event: &OwnedFd) {
    let mut count = 0u64;
    // SAFETY: eight writable bytes. A failure means it is zero.
    unsafe { libc::read(event.as_raw_fd(), ptr::from_mut(&mut count).cast::<c_void>(), 8) };
}
