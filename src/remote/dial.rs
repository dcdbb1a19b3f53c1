//! One connection to one endpoint of a remote daemon, from the name to the
//! WebSocket.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use pythond_identity::{PeerAddress, Pins, Store, UnixTime};
use pythond_tls::{ClientTls, TlsTrouble};
use pythond_transport::{OFFERED, Spoken, SshAddress, is_noise, is_wrong_token};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use zeroize::Zeroizing;

use super::endpoint::Endpoint;
use super::error::{DialError, shown};
use super::spec::{RemoteSpec, TokenSource};
use super::stream::{Activity, ClientStream};
use crate::listener::BOOT_HEADER;
use crate::network::listen::prepare;

/// How long each address of an endpoint may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long all of it may take, for one endpoint.
const DEADLINE: Duration = Duration::from_secs(10);
/// Greatest message that is taken, in bytes: an answer with all its output.
static MAX_MESSAGE: AtomicUsize = AtomicUsize::new(1 << 30);
/// Most of what a failing ssh says that is read, in bytes, and how long.
const MOST_WORDS: u64 = 4096;
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Greatest token file, in bytes.
const MAX_TOKEN: u64 = 4096;

/// Sets the greatest answer that is taken of a remote, in bytes, for connections that
/// are made from now on.
pub(crate) fn set_most_answer(bytes: usize) {
    MAX_MESSAGE.store(bytes, Ordering::Relaxed);
}

/// The greatest answer that is taken of a remote, in bytes.
pub(super) fn most_answer() -> usize {
    MAX_MESSAGE.load(Ordering::Relaxed)
}

pub(crate) type Socket = WebSocketStream<ClientStream>;

/// A connection, and what shows that its other end lives.
pub(crate) struct Dialled {
    pub(crate) socket: Socket,
    pub(crate) activity: Activity,
    pub(crate) spoken: Spoken,
    /// Which daemon it is, if it says so.
    pub(crate) boot: Option<HeaderValue>,
    /// What to tell: that a pin has got its address now.
    pub(crate) note: Option<String>,
}

/// Connects to one endpoint.
///
/// # Errors
/// [`DialError`].
pub(crate) async fn dial(
    spec: &RemoteSpec,
    endpoint: &Endpoint,
    home: &Path,
) -> Result<Dialled, DialError> {
    timeout(DEADLINE, dial_patiently(spec, endpoint, home))
        .await
        .map_err(|_| DialError::NoAnswer(DEADLINE.as_secs()))?
}

async fn dial_patiently(
    spec: &RemoteSpec,
    endpoint: &Endpoint,
    home: &Path,
) -> Result<Dialled, DialError> {
    let endpoint = match endpoint {
        Endpoint::Ssh(address) => return by_ssh(address).await,
        Endpoint::Tcp(endpoint) => endpoint,
    };
    let token = token(&spec.token)?;
    let stream = connect(endpoint).await?;
    // One that is gone shows in a moment.
    let _ = prepare(&stream);
    let (stream, tls, note) = if spec.tls {
        let store = Store::open(home)?;
        let now = UnixTime::now();
        let (pins, own) = (store.pins()?, store.own(now)?);
        let tls = client_tls(endpoint, pins, own.as_ref(), now)?;
        let connecting = TlsConnector::from(tls.config()).connect(tls.server_name(), stream);
        let stream = connecting.await.map_err(|error| explain(&tls, &error))?;
        let note = pin_here(&store, &tls, endpoint)?;
        (ClientStream::tls(stream), Some(tls), note)
    } else {
        (ClientStream::tcp(stream), None, None)
    };
    let activity = stream.activity();
    let (mut socket, response) = upgrade(stream, &endpoint.to_string(), &token)
        .await
        .map_err(|error| match (error, &tls) {
            (WsError::Io(error), Some(tls)) => explain(tls, &error),
            (_, None) if activity.speaks_tls() => DialError::SpeaksTls,
            (error, _) => refused(error),
        })?;
    let spoken = spoken(&response)?;
    if spoken == Spoken::Earlier {
        first_word(&mut socket).await?;
    }
    Ok(Dialled {
        socket,
        activity,
        spoken,
        boot: boot(&response),
        note,
    })
}

fn spoken(response: &Response) -> Result<Spoken, DialError> {
    let agreed = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
    Spoken::agreed(agreed.map(HeaderValue::as_bytes))
        .ok_or_else(|| DialError::Refused("it speaks no version that we know".to_owned()))
}

fn boot(response: &Response) -> Option<HeaderValue> {
    response.headers().get(BOOT_HEADER).cloned()
}

/// A daemon of 0.4 looks at the token only now.
async fn first_word(socket: &mut Socket) -> Result<(), DialError> {
    socket.send(Message::text("help")).await.map_err(refused)?;
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) if is_wrong_token(&text) => {
                return Err(DialError::Unauthorized);
            }
            Some(Ok(Message::Text(_))) => return Ok(()),
            Some(Ok(Message::Close(_))) | None => {
                return Err(DialError::Unreachable(
                    "it closed the connection".to_owned(),
                ));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(refused(error)),
        }
    }
}

async fn by_ssh(address: &SshAddress) -> Result<Dialled, DialError> {
    let failed = |error: Error| DialError::Ssh(format!("ssh cannot be run: {error}"));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let ours = UnixStream::from_std(ours).map_err(failed)?;
    let input = OwnedFd::from(theirs.try_clone().map_err(failed)?);
    let mut ssh = tokio::process::Command::from(address.command())
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut words = ssh.stderr.take();
    let stream = ClientStream::ssh(ours, ssh);
    let activity = stream.activity();
    match upgrade(stream, "localhost", "").await {
        Ok((socket, response)) => {
            let spoken = spoken(&response)?;
            if let Some(mut words) = words {
                // One that finds no reader for what it says would wait.
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut words, &mut tokio::io::sink()).await;
                });
            }
            Ok(Dialled {
                socket,
                activity,
                spoken,
                boot: boot(&response),
                note: None,
            })
        }
        Err(error) if is_noise(&error) => Err(DialError::SshNoise(address.destination.clone())),
        Err(error) => {
            let mut said = Vec::new();
            if let Some(words) = &mut words {
                let mut words = words.take(MOST_WORDS);
                let _ = timeout(LAST_WORDS, words.read_to_end(&mut said)).await;
            }
            let said = String::from_utf8_lossy(&said);
            let last = said.lines().rev().find(|line| !line.trim().is_empty());
            Err(DialError::Ssh(match last {
                Some(line) => format!("ssh: {}", shown(line, 200)),
                None => format!("ssh: {error}"),
            }))
        }
    }
}

fn client_tls(
    endpoint: &PeerAddress,
    pins: Pins,
    own: Option<&pythond_identity::OwnIdentity>,
    now: UnixTime,
) -> Result<ClientTls, DialError> {
    ClientTls::new(endpoint.clone(), pins, own, now)
        .map_err(|error| DialError::Tls(Box::new(TlsTrouble::Broken(error))))
}

/// Pins a certificate that had no address yet to the one where it was met.
fn pin_here(
    store: &Store,
    tls: &ClientTls,
    endpoint: &PeerAddress,
) -> Result<Option<String>, DialError> {
    let Some(pinned) = tls.pinned().filter(|pinned| pinned.without_address) else {
        return Ok(None);
    };
    store.pin(&pinned.certificate, Some(endpoint))?;
    let fingerprint = pinned.certificate.fingerprint();
    Ok(Some(format!(
        "the certificate {fingerprint} was pinned without an address; it is pinned to {endpoint} now"
    )))
}

fn token(source: &TokenSource) -> Result<Zeroizing<String>, DialError> {
    let path = match source {
        TokenSource::Given(token) => return Ok(token.clone()),
        TokenSource::None => return Ok(Zeroizing::default()),
        TokenSource::File(path) => path,
    };
    let failed = |why: String| DialError::TokenFile {
        path: path.display().to_string(),
        why,
    };
    read_token(path).map_err(failed)
}

fn read_token(path: &Path) -> Result<Zeroizing<String>, String> {
    use std::io::Read as _;
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path);
    let file = opened.map_err(|error| error.to_string())?;
    let found = file.metadata().map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("it is no file".to_owned());
    }
    if found.mode() & 0o077 != 0 {
        return Err(format!(
            "others can read it; run `chmod 600 {}`",
            path.display()
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_TOKEN)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    let token = Zeroizing::new(text.trim().to_owned());
    if super::spec::is_token(&token) {
        Ok(token)
    } else {
        Err("it should have the token alone".to_owned())
    }
}

/// Tries all addresses that the host has.
async fn connect(endpoint: &PeerAddress) -> Result<TcpStream, DialError> {
    let host = endpoint.host();
    let found = tokio::net::lookup_host((host.as_str(), endpoint.port())).await;
    let addresses: Vec<SocketAddr> = found
        .map_err(|error| DialError::Unreachable(format!("the host is not known: {error}")))?
        .collect();
    let mut last = DialError::Unreachable("the host has no address".to_owned());
    for address in addresses {
        last = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => unreachable(&error),
            Err(_) => DialError::NoAnswer(CONNECT.as_secs()),
        };
    }
    Err(last)
}

fn unreachable(error: &Error) -> DialError {
    DialError::Unreachable(match error.kind() {
        ErrorKind::ConnectionRefused => return DialError::NobodyListens,
        ErrorKind::HostUnreachable => "the host cannot be reached".to_owned(),
        ErrorKind::NetworkUnreachable => "the network cannot be reached".to_owned(),
        _ => error.to_string(),
    })
}

fn explain(tls: &ClientTls, error: &Error) -> DialError {
    match tls.explain_io(error) {
        Some(TlsTrouble::TurnedAway) => DialError::Penalty,
        Some(trouble) => DialError::Tls(Box::new(trouble)),
        None => DialError::Unreachable(match error.kind() {
            ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        }),
    }
}

async fn upgrade(
    stream: ClientStream,
    host: &str,
    token: &str,
) -> Result<(Socket, Response), WsError> {
    let mut request = format!("ws://{host}/").into_client_request()?;
    let headers = request.headers_mut();
    if !token.is_empty() {
        let mut bearer = HeaderValue::from_str(&Zeroizing::new(format!("Bearer {token}")))?;
        bearer.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, bearer);
    }
    let offered = HeaderValue::from_static(OFFERED);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
    let config = WebSocketConfig::default()
        .max_message_size(Some(most_answer()))
        .max_frame_size(Some(most_answer()));
    tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await
}

fn refused(error: WsError) -> DialError {
    match error {
        WsError::Http(response) => match response.status() {
            StatusCode::UNAUTHORIZED => DialError::Unauthorized,
            StatusCode::TOO_MANY_REQUESTS => DialError::Penalty,
            StatusCode::SERVICE_UNAVAILABLE => DialError::Busy,
            status => {
                let words = response.body().as_deref().unwrap_or_default();
                let words = String::from_utf8_lossy(words);
                let words = shown(&words, 200);
                DialError::Refused(format!("it answers {}: {words}", status.as_u16()))
            }
        },
        WsError::Io(error) => DialError::Unreachable(match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                "it closed the connection".to_owned()
            }
            _ => error.to_string(),
        }),
        other => DialError::Refused(format!("it does not speak our protocol: {other}")),
    }
}
