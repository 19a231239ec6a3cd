//! The target description and register file in gdb's form, made from the one table of `crate::registers`.

use crate::registers::{Group, REGISTERS, Register, Type};
use std::num::NonZeroUsize;
use std::sync::LazyLock;

/// x86-64 with the system registers; the layout does not depend on the guest's mode.
#[derive(Debug)]
pub enum Arch {}

impl gdbstub::arch::Arch for Arch {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = RegId;

    fn target_description_xml() -> Option<&'static str> {
        Some(target_xml())
    }
}

/// All registers as gdb's `g` packet has them: little-endian, in the table's order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    pub bytes: Vec<u8>,
}

/// Bytes of a whole register file.
pub fn file_size() -> usize {
    REGISTERS.iter().map(Register::bytes).sum()
}

impl gdbstub::arch::Registers for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        let rip = self.bytes.get(16 * 8..17 * 8).and_then(|b| b.try_into().ok());
        rip.map_or(0, u64::from_le_bytes)
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for b in &self.bytes {
            write_byte(Some(*b));
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        if bytes.len() != file_size() {
            return Err(());
        }
        self.bytes = bytes.to_vec();
        Ok(())
    }
}

/// A register by its number: its index in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegId(pub usize);

impl RegId {
    /// Its row.
    pub fn register(self) -> Option<&'static Register> {
        REGISTERS.get(self.0)
    }
}

impl gdbstub::arch::RegId for RegId {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        REGISTERS.get(id).map(|r| (Self(id), NonZeroUsize::new(r.bytes())))
    }
    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// The target description (gdb manual, appendix G).
pub fn target_xml() -> &'static str {
    static XML: LazyLock<String> = LazyLock::new(make_xml);
    &XML
}

fn make_xml() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n\
         <architecture>i386:x86-64</architecture>\n",
    );
    for (group, feature, types) in FEATURES {
        xml += &format!("<feature name=\"{feature}\">\n{types}");
        for r in REGISTERS.iter().filter(|r| r.group == *group) {
            let (ty, set) = (type_name(r.ty), reggroup(r));
            xml += &format!("<reg name=\"{}\" bitsize=\"{}\" type=\"{ty}\"{set}/>\n", r.name, r.bits);
        }
        xml += "</feature>\n";
    }
    xml + "</target>\n"
}

fn reggroup(r: &Register) -> &'static str {
    match r.group {
        Group::Core if r.name.starts_with('f') && r.name != "fs" => " group=\"float\"",
        Group::Core | Group::Sse | Group::Segments => "",
        Group::Control | Group::Descriptor | Group::Debug => " group=\"system\"",
    }
}

const fn type_name(ty: Type) -> &'static str {
    match ty {
        Type::Int => "int",
        Type::DataPtr => "data_ptr",
        Type::CodePtr => "code_ptr",
        Type::Eflags => "i386_eflags",
        Type::Cr0 => "x86_cr0",
        Type::Cr4 => "x86_cr4",
        Type::Efer => "x86_efer",
        Type::Mxcsr => "i386_mxcsr",
        Type::Ext80 => "i387_ext",
        Type::Vec128 => "vec128",
    }
}

/// Features in the order of their registers in the table, with the types they define.
const FEATURES: &[(Group, &str, &str)] = &[
    (Group::Core, "org.gnu.gdb.i386.core", EFLAGS),
    (Group::Sse, "org.gnu.gdb.i386.sse", SSE_TYPES),
    (Group::Segments, "org.gnu.gdb.i386.segments", ""),
    (Group::Control, "org.retrovisor.x86.control", CONTROL_TYPES),
    (Group::Descriptor, "org.retrovisor.x86.descriptors", ""),
    (Group::Debug, "org.retrovisor.x86.debug", ""),
];

const EFLAGS: &str = r#"<flags id="i386_eflags" size="4">
<field name="CF" start="0" end="0"/><field name="" start="1" end="1"/><field name="PF" start="2" end="2"/>
<field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>
<field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/>
<field name="OF" start="11" end="11"/><field name="IOPL" start="12" end="13" type="uint32"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>
<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/><field name="VIF" start="19" end="19"/>
<field name="VIP" start="20" end="20"/><field name="ID" start="21" end="21"/>
</flags>
"#;

const SSE_TYPES: &str = r#"<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
<flags id="i386_mxcsr" size="4">
<field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/><field name="ZE" start="2" end="2"/>
<field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/><field name="PE" start="5" end="5"/>
<field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/><field name="DM" start="8" end="8"/>
<field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/><field name="UM" start="11" end="11"/>
<field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/>
</flags>
"#;

const CONTROL_TYPES: &str = r#"<flags id="x86_cr0" size="8">
<field name="PE" start="0" end="0"/><field name="MP" start="1" end="1"/><field name="EM" start="2" end="2"/>
<field name="TS" start="3" end="3"/><field name="ET" start="4" end="4"/><field name="NE" start="5" end="5"/>
<field name="WP" start="16" end="16"/><field name="AM" start="18" end="18"/><field name="NW" start="29" end="29"/>
<field name="CD" start="30" end="30"/><field name="PG" start="31" end="31"/>
</flags>
<flags id="x86_cr4" size="8">
<field name="VME" start="0" end="0"/><field name="PVI" start="1" end="1"/><field name="TSD" start="2" end="2"/>
<field name="DE" start="3" end="3"/><field name="PSE" start="4" end="4"/><field name="PAE" start="5" end="5"/>
<field name="MCE" start="6" end="6"/><field name="PGE" start="7" end="7"/><field name="PCE" start="8" end="8"/>
<field name="OSFXSR" start="9" end="9"/><field name="OSXMMEXCPT" start="10" end="10"/><field name="UMIP" start="11" end="11"/>
<field name="LA57" start="12" end="12"/><field name="FSGSBASE" start="16" end="16"/><field name="PCIDE" start="17" end="17"/>
<field name="OSXSAVE" start="18" end="18"/><field name="SMEP" start="20" end="20"/><field name="SMAP" start="21" end="21"/>
<field name="PKE" start="22" end="22"/>
</flags>
<flags id="x86_efer" size="8">
<field name="SCE" start="0" end="0"/><field name="LME" start="8" end="8"/><field name="LMA" start="10" end="10"/>
<field name="NXE" start="11" end="11"/>
</flags>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_lists_every_register_in_table_order() {
        let xml = target_xml();
        let mut from = 0;
        for r in REGISTERS {
            let found = xml[from..].find(&format!("<reg name=\"{}\" ", r.name));
            assert!(found.is_some(), "{} is missing or out of order", r.name);
            from += found.unwrap_or(0) + 1;
        }
        assert_eq!(xml.matches("<reg ").count(), REGISTERS.len());
    }

    #[test]
    fn pc_is_where_the_core_feature_puts_it() {
        use gdbstub::arch::Registers as _;
        let at: usize = REGISTERS.iter().take_while(|r| r.name != "rip").map(Register::bytes).sum();
        assert_eq!(at, 16 * 8);
        let mut regs = Registers { bytes: vec![0; file_size()] };
        regs.bytes[at] = 0x42;
        assert_eq!(regs.pc(), 0x42);
    }
}
