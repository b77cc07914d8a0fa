"""libvirt's description of a host, as far as we read it: of a small host that never was."""

from __future__ import annotations


def capabilities(
    *,
    kvm: bool = True,
    vendor: str = "Intel",
    features: tuple[str, ...] = ("vmx", "aes", "avx2"),
    microcode: int = 240,
    stepping: int = 3,
    machine: str = "pc-q35-10.0",
    emulator: str = "/usr/bin/qemu-system-x86_64",
    memory_kib: int = 16777216,
    uuid: str = "00000000-0000-4000-8000-000000000001",
) -> str:
    """In libvirt's form."""
    listed = "".join(f"<feature name='{each}'/>" for each in features)
    domains = "<domain type='qemu'/>" + ("<domain type='kvm'/>" if kvm else "")
    return f"""<capabilities>
  <host>
    <uuid>{uuid}</uuid>
    <cpu>
      <arch>x86_64</arch><model>Invented-v1</model><vendor>{vendor}</vendor>
      <microcode version='{microcode}'/>
      <signature family='6' model='94' stepping='{stepping}'/>
      <counter name='tsc' frequency='3000000000' scaling='no'/>
      <topology sockets='1' dies='1' cores='4' threads='2'/>
      {listed}
    </cpu>
    <topology><cells num='1'>
      <cell id='0'><memory unit='KiB'>{memory_kib}</memory></cell>
    </cells></topology>
    <secmodel><model>dac</model><doi>0</doi>
      <baselabel type='kvm'>+64055:+108</baselabel>
      <baselabel type='qemu'>+64055:+108</baselabel>
    </secmodel>
  </host>
  <guest><os_type>hvm</os_type>
    <arch name='i686'><emulator>/usr/bin/qemu-system-i386</emulator>
      <machine canonical='pc-q35-1.0'>q35</machine>{domains}</arch></guest>
  <guest><os_type>hvm</os_type>
    <arch name='x86_64'><wordsize>64</wordsize><emulator>{emulator}</emulator>
      <machine maxCpus='255'>pc-i440fx-10.0</machine>
      <machine canonical='pc-i440fx-10.0' maxCpus='255'>pc</machine>
      <machine canonical='{machine}' maxCpus='4096'>q35</machine>
      {domains}
    </arch></guest>
</capabilities>"""
