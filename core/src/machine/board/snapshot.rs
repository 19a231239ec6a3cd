//! Saving and restoring the whole board. Derived values are recomputed; lines are restored, not changed.

use super::{Board, BoardEvent};
use crate::state::{Field, Reader, State, StateError, Writer};

impl Board {
    /// Saves every device.
    pub fn save(&self, w: &mut Writer) {
        let Self {
            events,
            a20_changed: _,
            debug_exit: _,
            pic,
            ioapic,
            lapics,
            pit,
            rtc,
            uart,
            i8042,
            pci,
            pm,
            fw_cfg,
            vga,
            dma,
            sysctl,
            testdev,
            lines,
            intr: _,
            next: _,
            pm_base: _,
        } = self;
        pic.save(w);
        ioapic.save(w);
        lapics.iter().for_each(|a| a.save(w));
        pit.save(w);
        rtc.save(w);
        uart.save(w);
        i8042.save(w);
        pci.save(w);
        pm.save(w);
        fw_cfg.save(w);
        vga.save(w);
        dma.save(w);
        sysctl.save(w);
        if let Some(t) = testdev {
            t.save(w);
        }
        lines.save(w);
        events.put(w);
    }

    /// Restores every device of a board of the same description; raises no edges. The caller applies
    /// [`Board::a20_mask`] to memory (`a20_changed` is set). After an error the board is partly restored.
    pub fn load(&mut self, r: &mut Reader<'_>) -> Result<(), StateError> {
        self.pic.load(r)?;
        self.ioapic.load(r)?;
        self.lapics.iter_mut().try_for_each(|a| a.load(r))?;
        self.pit.load(r)?;
        self.rtc.load(r)?;
        self.uart.load(r)?;
        self.i8042.load(r)?;
        self.pci.load(r)?;
        self.pm.load(r)?;
        self.fw_cfg.load(r)?;
        self.vga.load(r)?;
        self.dma.load(r)?;
        self.sysctl.load(r)?;
        if let Some(t) = &mut self.testdev {
            t.load(r)?;
        }
        self.lines.load(r)?;
        self.events = Vec::get(r)?;
        self.rederive();
        Ok(())
    }
}

impl Field for BoardEvent {
    fn put(&self, w: &mut Writer) {
        let (kind, value) = match *self {
            BoardEvent::Init(cpu) => (0u8, u32::from(cpu)),
            BoardEvent::Sipi(cpu, vector) => (1, u32::from(cpu) | u32::from(vector) << 8),
            BoardEvent::Nmi(cpu) => (2, u32::from(cpu)),
            BoardEvent::Reset => (3, 0),
            BoardEvent::PowerOff => (4, 0),
            BoardEvent::DebugExit(value) => (5, value),
        };
        kind.put(w);
        value.put(w);
    }

    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        let (kind, value) = (u8::get(r)?, u32::get(r)?);
        Ok(match kind {
            0 => BoardEvent::Init(value as u8),
            1 => BoardEvent::Sipi(value as u8, (value >> 8) as u8),
            2 => BoardEvent::Nmi(value as u8),
            3 => BoardEvent::Reset,
            4 => BoardEvent::PowerOff,
            5 => BoardEvent::DebugExit(value),
            _ => return Err(r.invalid()),
        })
    }
}
