//! What a host can be asked on its control lane.

use pythond_protocol::CellId;
use pythond_protocol::lane::{HostCommand, HostEvent};
use pythond_protocol::output_log::Stream;
use pythond_protocol::verbs::attach::TerminalSize;

/// An answer of the host, with its body.
pub(crate) type Answer = (HostEvent, Vec<u8>);

/// A question that the host answers on its control lane.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Status,
    Vars,
    Complete(String),
    Cells,
    Look(Option<CellId>),
    Await(CellId),
    Read(OutputRange),
    Interrupt {
        /// Empty means every running cell.
        cells: Vec<CellId>,
        /// `fork` cells are not killed.
        soft: bool,
        /// Nobody named the cells.
        unnamed: bool,
    },
    Stack,
    KillChildren(CellId),
    Hold {
        by: Option<String>,
        terminal: Option<u64>,
    },
    Resize(TerminalSize),
}

/// Which output is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputRange {
    pub(crate) cell: CellId,
    pub(crate) stream: Option<Stream>,
    pub(crate) offset: u64,
    pub(crate) most: u32,
    /// Wait until there is something, or the cell has ended.
    pub(crate) follow: bool,
}

impl Question {
    /// Interrupts these cells; all that run if there are none.
    pub(crate) fn interrupt(cells: Vec<CellId>, soft: bool) -> Self {
        Self::Interrupt {
            cells,
            soft,
            unnamed: false,
        }
    }

    /// The one cell that it is about.
    pub(super) fn cell(&self) -> Option<CellId> {
        match self {
            Self::Look(cell) => *cell,
            Self::Await(cell) | Self::KillChildren(cell) => Some(*cell),
            Self::Read(range) => Some(range.cell),
            Self::Interrupt { cells, .. } => match cells[..] {
                [only] => Some(only),
                _ => None,
            },
            Self::Status
            | Self::Vars
            | Self::Complete(_)
            | Self::Cells
            | Self::Stack
            | Self::Hold { .. }
            | Self::Resize(_) => None,
        }
    }

    pub(super) fn into_command(self, request: u64) -> HostCommand {
        match self {
            Self::Status => HostCommand::Status { request },
            Self::Vars => HostCommand::Vars { request },
            Self::Complete(text) => HostCommand::Complete { request, text },
            Self::Cells => HostCommand::Cells { request },
            Self::Look(cell) => HostCommand::Look { request, cell },
            Self::Await(cell) => HostCommand::Await { request, cell },
            Self::Read(OutputRange {
                cell,
                stream,
                offset,
                most,
                follow,
            }) => HostCommand::ReadOutput {
                request,
                cell,
                stream,
                offset,
                most,
                follow,
            },
            Self::Interrupt {
                cells,
                soft,
                unnamed,
            } => HostCommand::Interrupt {
                request,
                cells,
                soft,
                unnamed,
            },
            Self::Stack => HostCommand::Stack { request },
            Self::KillChildren(cell) => HostCommand::KillChildren { request, cell },
            Self::Hold { by, terminal } => HostCommand::Hold {
                request,
                by,
                terminal,
            },
            Self::Resize(size) => HostCommand::Resize { request, size },
        }
    }
}
