//! Saving and restoring the whole board. Derived values are recomputed; lines are restored, not changed.

use super::Board;
use crate::state::{Reader, State, StateError, Writer};

impl Board {
    /// Saves every device.
    pub fn save(&self, w: &mut Writer) {
        let Self {
            events: _,
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
        self.events.clear();
        self.rederive();
        Ok(())
    }
}
