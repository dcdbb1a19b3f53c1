//! What both ends compute. The client sends its proof first; the server gives its
//! own to nobody whose proof is wrong.

use ring::hmac;
use spake2::{Ed25519Group, Identity, Password, Spake2};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::Code;

/// Begins every proof: another version is another protocol.
const VERSION: &str = "pythond.pair.1";
const PROOF_BYTES: usize = 32;

type Proof = [u8; PROOF_BYTES];

/// SHA-256 of both certificates (DER), as one end saw them in the TLS handshake: its
/// own, and what the other showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// The client's.
    pub client: [u8; 32],
    /// The server's.
    pub server: [u8; 32],
}

/// What came is no element of the group, or of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no message of this key exchange")]
pub struct NoElement;

fn begin_as(role: &str) -> Identity {
    Identity::new(format!("{VERSION} {role}").as_bytes())
}

/// What each end proves to the other that it has the key.
struct Proofs {
    client: Zeroizing<Proof>,
    server: Zeroizing<Proof>,
}

impl Proofs {
    fn new(key: &[u8], seen: Certificates, client: &[u8], server: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let proof = |role: &str| {
            let mut context = hmac::Context::with_key(&key);
            // All parts that follow the role have a fixed length.
            for part in [VERSION.as_bytes(), b" ", role.as_bytes(), b"\0"] {
                context.update(part);
            }
            for part in [&seen.client[..], &seen.server, client, server] {
                context.update(part);
            }
            let mut proof = Zeroizing::new([0; PROOF_BYTES]);
            proof.copy_from_slice(context.sign().as_ref());
            proof
        };
        Self {
            client: proof("client"),
            server: proof("server"),
        }
    }
}

fn is_same(expected: &Proof, shown: &[u8]) -> bool {
    expected.ct_eq(shown).into()
}

/// A client that has said its first word.
pub struct ClientOpening {
    state: Spake2<Ed25519Group>,
    element: Vec<u8>,
    seen: Certificates,
}

impl ClientOpening {
    /// Begins with a code that somebody typed.
    #[must_use]
    pub fn new(code: &Code, seen: Certificates) -> Self {
        let (client, server) = (begin_as("client"), begin_as("server"));
        let (state, element) = Spake2::start_a(&Password::new(code.digits()), &client, &server);
        Self {
            state,
            element,
            seen,
        }
    }

    /// For the server.
    #[must_use]
    pub fn element(&self) -> &[u8] {
        &self.element
    }

    /// Goes on with the server's answer.
    ///
    /// # Errors
    /// [`NoElement`].
    pub fn answered(self, server: &[u8]) -> Result<ClientKeys, NoElement> {
        let key = Zeroizing::new(self.state.finish(server).map_err(|_| NoElement)?);
        let proofs = Proofs::new(&key, self.seen, &self.element, server);
        Ok(ClientKeys(proofs))
    }
}

/// A client that has a key, and does not know yet whether the server has the same.
pub struct ClientKeys(Proofs);

impl ClientKeys {
    /// For the server.
    #[must_use]
    pub fn proof(&self) -> &[u8] {
        &*self.0.client
    }

    /// Whether the server knows the code and saw the same certificates.
    #[must_use]
    pub fn believes(&self, proof: &[u8]) -> bool {
        is_same(&self.0.server, proof)
    }
}

/// A server that has a key, and does not know yet whether the client has the same.
pub struct ServerKeys {
    proofs: Proofs,
    element: Vec<u8>,
}

impl ServerKeys {
    /// Answers a client's first word.
    ///
    /// # Errors
    /// [`NoElement`].
    pub fn answering(code: &Code, seen: Certificates, client: &[u8]) -> Result<Self, NoElement> {
        let names = (begin_as("client"), begin_as("server"));
        let (state, element) =
            Spake2::<Ed25519Group>::start_b(&Password::new(code.digits()), &names.0, &names.1);
        let key = Zeroizing::new(state.finish(client).map_err(|_| NoElement)?);
        let proofs = Proofs::new(&key, seen, client, &element);
        Ok(Self { proofs, element })
    }

    /// For the client.
    #[must_use]
    pub fn element(&self) -> &[u8] {
        &self.element
    }

    /// Whether the client knows the code and saw the same certificates.
    #[must_use]
    pub fn believes(&self, proof: &[u8]) -> bool {
        is_same(&self.proofs.client, proof)
    }

    /// For a client that is believed.
    #[must_use]
    pub fn proof(&self) -> &[u8] {
        &*self.proofs.server
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Certificates = Certificates {
        client: [1; 32],
        server: [2; 32],
    };

    fn code(text: &str) -> Code {
        text.parse().unwrap()
    }

    fn meet(
        client: (&str, Certificates),
        server: (&str, Certificates),
    ) -> (ClientKeys, ServerKeys) {
        let opening = ClientOpening::new(&code(client.0), client.1);
        let keys = ServerKeys::answering(&code(server.0), server.1, opening.element()).unwrap();
        (opening.answered(keys.element()).unwrap(), keys)
    }

    #[test]
    fn who_knows_the_code_and_saw_the_same_is_believed_by_both() {
        let (client, server) = meet(("12345678", SEEN), ("1234-5678", SEEN));
        assert!(server.believes(client.proof()));
        assert!(client.believes(server.proof()));
        // A proof is one end's own: nobody can send it back.
        assert!(!server.believes(server.proof()));
        assert!(!client.believes(client.proof()));
    }

    #[test]
    fn another_code_or_another_certificate_is_not_believed() {
        let between = [3; 32];
        let cases = [
            ("12345679", SEEN),
            (
                "12345678",
                Certificates {
                    client: between,
                    ..SEEN
                },
            ),
            (
                "12345678",
                Certificates {
                    server: between,
                    ..SEEN
                },
            ),
            (
                "12345678",
                Certificates {
                    client: SEEN.server,
                    server: SEEN.client,
                },
            ),
        ];
        for other in cases {
            let (client, server) = meet(("12345678", SEEN), other);
            assert!(!server.believes(client.proof()), "{other:?}");
            assert!(!client.believes(server.proof()), "{other:?}");
        }
    }

    #[test]
    fn what_was_recorded_is_of_no_use_again() {
        let opening = ClientOpening::new(&code("12345678"), SEEN);
        let element = opening.element().to_vec();
        let first = ServerKeys::answering(&code("12345678"), SEEN, &element).unwrap();
        let client = opening.answered(first.element()).unwrap();
        assert!(first.believes(client.proof()));
        let again = ServerKeys::answering(&code("12345678"), SEEN, &element).unwrap();
        assert_ne!(first.element(), again.element());
        assert!(!again.believes(client.proof()));
        assert!(!client.believes(again.proof()));
    }

    #[test]
    fn what_is_no_element_is_refused() {
        let opening = || ClientOpening::new(&code("12345678"), SEEN);
        let own = opening().element().to_vec();
        let mut outside = own.clone();
        // No point of the curve has this coordinate.
        outside[1..].fill(0);
        outside[1] = 2;
        let of_server = {
            let keys = ServerKeys::answering(&code("12345678"), SEEN, &own).unwrap();
            keys.element().to_vec()
        };
        for wrong in [
            &[][..],
            b"A",
            &own[..32],
            &[&own[..], b"x"].concat(),
            &outside,
            &of_server,
        ] {
            let answered = ServerKeys::answering(&code("12345678"), SEEN, wrong);
            assert_eq!(answered.err(), Some(NoElement), "{wrong:?}");
        }
        // Its own word, sent back to it.
        assert_eq!(opening().answered(&own).err(), Some(NoElement));
    }

    #[test]
    fn a_proof_of_another_length_is_wrong() {
        let (client, server) = meet(("12345678", SEEN), ("12345678", SEEN));
        assert!(!server.believes(&[]));
        assert!(!server.believes(&client.proof()[..31]));
        assert!(!server.believes(&[client.proof(), b"x"].concat()));
    }
}
