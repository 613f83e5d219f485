//! A resolver that knows one address, and remembers who asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};

use mwb_sim::lab::Host;

/// What every name's address is.
pub(crate) const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
const QUESTION_A: [u8; 4] = [0, 1, 0, 1];

/// The resolver; its thread ends with the process.
pub(crate) struct Resolver {
    asked: Arc<Mutex<Vec<IpAddr>>>,
}

impl Resolver {
    /// Answers at port 53 of `address` on `host`.
    pub(crate) fn start(host: &Host, address: IpAddr) -> Self {
        let socket = host.run(move || UdpSocket::bind(SocketAddr::new(address, 53))).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut query) {
                noted.lock().unwrap().push(from.ip());
                if let Some(answer) = answer(&query[..len]) {
                    // Who has gone asks again.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { asked }
    }

    /// Who has asked since the last time.
    pub(crate) fn asked(&self) -> Vec<IpAddr> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// RFC 1035: the question again, and an address if one was asked for.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let labels = query.get(12..)?.iter().position(|byte| *byte == 0)?;
    let end = 12 + labels + 5;
    let question = query.get(12..end)?;
    let has_answer = question.ends_with(&QUESTION_A);
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(has_answer), 0, 0, 0, 0]);
    answer.extend(question);
    if has_answer {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(ANSWER.octets());
    }
    Some(answer)
}

/// The address of `name` by the C library of `host`; none when nobody answers.
pub(crate) fn resolve(host: &Host, name: &str) -> Option<Ipv4Addr> {
    let mut command = Command::new("getent");
    command.args(["ahostsv4", name]);
    let output = host.output(command).expect("getent is part of the C library's programs");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().and_then(|address| address.parse().ok())
}
