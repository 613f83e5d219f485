//! Questions to a running node over its Unix socket.
//!
//! A frame is a length (u32, big-endian, at most [`FRAME_MAX`]) and that many bytes of JSON. A connection
//! carries one [`Request`] and one [`Answer`]; both sides give up after [`PATIENCE`]. The socket, by default in the
//! runtime folder (mode 0700), has mode 0600: who may run the node may ask.

use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Name of the socket in the runtime folder.
pub(crate) const SOCKET: &str = "control.sock";
/// Largest frame: a status of hundreds of paths is far smaller.
const FRAME_MAX: usize = 4 * 1024 * 1024;
/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections served at once; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 16;

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(crate) enum Request {
    /// The whole state of the node.
    Status,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// What was asked for.
    Ok(Value),
    /// Why not.
    Error(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens in that folder.
    #[error("no node runs")]
    NotRunning,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The node refused.
    #[error("{0}")]
    Refused(String),
}

/// Answers requests at the socket `path` until dropped.
///
/// # Errors
/// When the socket cannot be made: somebody answers there already, or something else than a socket is there.
pub(crate) fn serve<F>(path: &Path, status: F) -> io::Result<Server>
where
    F: Fn() -> Value + Send + Sync + 'static,
{
    remove_dead(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let path = path.to_owned();
    let status = Arc::new(status);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let task = tokio::spawn(async move {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "accepting a question");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let status = Arc::clone(&status);
            tokio::spawn(async move {
                let _slot = slot;
                match tokio::time::timeout(PATIENCE, answer(stream, &*status)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "answering a question"),
                    Err(_) => tracing::debug!("a question took too long"),
                }
            });
        }
    });
    Ok(Server { task, path })
}

/// Removes the socket that a killed node has left.
fn remove_dead(path: &Path) -> io::Result<()> {
    let at = |what: &str| format!("{} {what}", path.display());
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            at("is there and is no socket; name another --socket"),
        )),
        Ok(_) if BlockingStream::connect(path).is_ok() => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, at("is another program's; name another --socket")))
        }
        Ok(_) => std::fs::remove_file(path),
    }
}

/// The task that answers; dropping it removes the socket.
pub(crate) struct Server {
    task: tokio::task::JoinHandle<()>,
    path: std::path::PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        std::fs::remove_file(&self.path).ok();
    }
}

async fn answer(mut stream: UnixStream, status: &(dyn Fn() -> Value + Send + Sync)) -> io::Result<()> {
    let len = stream.read_u32().await? as usize;
    let answer = if len > FRAME_MAX {
        Answer::Error(format!("a request of {len} bytes is too long"))
    } else {
        let mut request = vec![0; len];
        stream.read_exact(&mut request).await?;
        match serde_json::from_slice(&request) {
            Ok(Request::Status) => Answer::Ok(status()),
            Err(error) => Answer::Error(format!("not a request of this version: {error}")),
        }
    };
    let bytes = serde_json::to_vec(&answer)?;
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_u32(len).await?;
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

/// Asks the node that answers at the socket `path`.
///
/// # Errors
/// [`AskError::NotRunning`], or why there is no answer.
pub(crate) fn ask(path: &Path, request: &Request) -> Result<Value, AskError> {
    let mut stream = BlockingStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NotRunning,
        _ => AskError::Io(error),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let bytes = serde_json::to_vec(request).map_err(io::Error::from)?;
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&len.to_be_bytes())?;
    stream.write_all(&bytes)?;
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > FRAME_MAX {
        return Err(io::Error::other(format!("an answer of {len} bytes is too long")).into());
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    match serde_json::from_slice(&bytes).map_err(io::Error::from)? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(reason) => Err(AskError::Refused(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(path: &Path, bytes: &[u8]) -> Vec<u8> {
        let mut stream = BlockingStream::connect(path).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        answer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn asked_and_answered() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        assert_eq!(serve(&file, || Value::Null).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
        let path = &dir.path().join(SOCKET);
        assert!(matches!(ask(path, &Request::Status), Err(AskError::NotRunning)));
        let server = serve(path, || serde_json::json!({"name": "n"})).unwrap();
        assert_eq!(ask(path, &Request::Status).unwrap()["name"], "n");
        assert_eq!(serve(path, || Value::Null).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(raw(path, &u32::MAX.to_be_bytes()).ends_with(b"is too long\"}"));
        assert!(String::from_utf8_lossy(&raw(path, b"\0\0\0\x02{}")).contains("not a request"));
        assert!(raw(path, b"\0\0").is_empty(), "a torn request gets no answer");
        drop(server);
        assert!(matches!(ask(path, &Request::Status), Err(AskError::NotRunning)));
        drop(serve(path, || Value::Null).unwrap());
    }
}
