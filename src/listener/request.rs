//! The request that becomes a WebSocket: what is refused before it does.

use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, header};

/// The `boot` of `info`: a daemon that has connected to itself knows it by this.
pub(crate) const BOOT_HEADER: &str = "pythond-boot";
/// In the order of preference.
const SUBPROTOCOLS: [&str; 3] = ["pythond.1", "pythond.0.4", "pythond.0.3"];

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Browsers send an `Origin`, and no page may talk to us.
    WebPage,
    /// It does not say, or says twice, for which host it is meant (RFC 9112, 3.2).
    NoHost,
    /// It is meant for another host, as that of a page is which had its name
    /// changed to this machine's address.
    OtherHost,
    /// It came without TLS, and clients need a certificate.
    NeedsTls,
    /// Its source has sent too many wrong tokens.
    TooManyTokens,
    /// It has no token, or a wrong one.
    WrongToken,
    /// What says who may come in cannot be read.
    Closed,
}

impl Refusal {
    /// For the log.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::WebPage => "origin",
            Self::NoHost => "no-host",
            Self::OtherHost => "host",
            Self::NeedsTls => "no-certificate",
            Self::TooManyTokens => "too-many-tokens",
            Self::WrongToken => "auth-failed",
            Self::Closed => "no-keys",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::NoHost => StatusCode::BAD_REQUEST,
            Self::WebPage | Self::OtherHost | Self::NeedsTls => StatusCode::FORBIDDEN,
            Self::TooManyTokens => StatusCode::TOO_MANY_REQUESTS,
            Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::Closed => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::WebPage => "no requests from web pages\n",
            Self::NoHost => "a request has one Host\n",
            Self::OtherHost => "no requests for this host; use localhost\n",
            Self::NeedsTls => "a client certificate is needed; use TLS\n",
            Self::TooManyTokens => "too many wrong tokens; try again later\n",
            Self::WrongToken => "ERR auth failed\n",
            Self::Closed => "nobody is let in now\n",
        }
    }
}

impl From<Refusal> for ErrorResponse {
    fn from(refusal: Refusal) -> Self {
        let mut response = Self::new(Some(refusal.words().to_owned()));
        *response.status_mut() = refusal.status();
        let extra = match refusal {
            Refusal::WrongToken => Some((header::WWW_AUTHENTICATE, "Bearer realm=\"pythond\"")),
            Refusal::TooManyTokens => Some((header::RETRY_AFTER, "5")),
            _ => None,
        };
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some((name, value)) = extra {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Agrees on a subprotocol, with any client that is no web page, and says which
/// daemon this is.
#[expect(clippy::result_large_err, reason = "the library's signature")]
pub(super) fn agree(
    request: &Request,
    mut response: Response,
    boot: &str,
) -> Result<Response, ErrorResponse> {
    if is_of_web_page(request.headers()) {
        return Err(Refusal::WebPage.into());
    }
    let headers = request.headers();
    if let Some(chosen) = SUBPROTOCOLS.iter().find(|known| offers(headers, known)) {
        speak(&mut response, chosen);
    }
    if let Ok(boot) = HeaderValue::from_str(boot) {
        response.headers_mut().insert(BOOT_HEADER, boot);
    }
    Ok(response)
}

/// Says which subprotocol is spoken.
pub(super) fn speak(response: &mut Response, chosen: &'static str) {
    let value = HeaderValue::from_static(chosen);
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
}

/// Whether a request offers a subprotocol.
pub(super) fn offers(headers: &HeaderMap, subprotocol: &str) -> bool {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offered = offered.iter().filter_map(|value| value.to_str().ok());
    let mut offered = offered.flat_map(|value| value.split(',').map(str::trim));
    offered.any(|it| it == subprotocol)
}

pub(super) fn is_of_web_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
}

/// The only value of a header.
fn single<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        _ => None,
    }
}

/// The token that a request shows.
pub(super) fn token(headers: &HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let value = single(headers, &header::AUTHORIZATION)?;
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| token.trim_ascii())
}

/// Whether a request says once for which host it is meant.
pub(super) fn has_host(headers: &HeaderMap) -> bool {
    single(headers, &header::HOST).is_some_and(|host| !host.is_empty())
}

/// Whether a request is meant for this machine by one of the names that it has for
/// itself.
pub(super) fn is_for_loopback(headers: &HeaderMap) -> bool {
    let host = single(headers, &header::HOST).and_then(|host| std::str::from_utf8(host).ok());
    let Some(host) = host else { return false };
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, after)) => (inside, after),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return false;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn names_of_this_machine_are_known() {
        for (host, good) in [
            ("localhost", true),
            ("LOCALHOST.:80", true),
            ("127.0.0.1:7399", true),
            ("127.8.8.8", true),
            ("[::1]:7399", true),
            ("[::ffff:127.0.0.1]", true),
            ("", false),
            ("localhost.example", false),
            ("127.0.0.1.example:7399", false),
            ("10.0.0.5", false),
            ("[::2]", false),
            ("[::1]evil.example", false),
            ("127.0.0.1:80@evil.example", false),
            ("localhost:evil", false),
            ("localhost:", true),
        ] {
            let found = is_for_loopback(&headers(header::HOST, &[host]));
            assert_eq!(found, good, "{host}");
        }
        assert!(!is_for_loopback(&HeaderMap::new()));
        let two = headers(header::HOST, &["localhost", "localhost"]);
        assert!(!is_for_loopback(&two));
    }

    #[test]
    fn a_token_stands_in_one_header() {
        let of = |values: &[&str]| {
            let headers = headers(header::AUTHORIZATION, values);
            token(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of(&["Bearer abc"]).unwrap(), b"abc");
        assert_eq!(of(&["bearer   abc "]).unwrap(), b"abc");
        for wrong in [
            &[][..],
            &["abc"],
            &["Basic abc"],
            &["Bearer"],
            &["Bearer a", "Bearer a"],
        ] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
    }
}
