//! Real processes: the daemon, its zygotes and its hosts are started, killed
//! and lied to, and what clients see is checked.

#[cfg(test)]
mod births;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod host_lane;
#[cfg(test)]
mod interrupts;
#[cfg(test)]
mod lanes;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod support;
