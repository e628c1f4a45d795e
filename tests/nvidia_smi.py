"""What nvidia-smi prints, in the formats of drivers 535 and 525; the values are made up."""

from __future__ import annotations

from collections.abc import Sequence

GPU = """\
	<gpu id="00000000:{bus}:00.0">
		<product_name>{name}</product_name>
		<product_architecture>Hopper</product_architecture>
		<persistence_mode>{persistence}</persistence_mode>
		<mig_mode>
			<current_mig>{mig}</current_mig>
			<pending_mig>{mig}</pending_mig>
		</mig_mode>
		<mig_devices>
			None
		</mig_devices>
		<uuid>GPU-{index}5d0f4a2-0000-1111-2222-333344445555</uuid>
		<minor_number>{index}</minor_number>
		<gpu_reset_status>
			<reset_required>{reset}</reset_required>
			<drain_and_reset_recommended>N/A</drain_and_reset_recommended>
		</gpu_reset_status>
		<pci>
			<pci_bus_id>00000000:{bus}:00.0</pci_bus_id>
			<pci_gpu_link_info>
				<pcie_gen>
					<max_link_gen>5</max_link_gen>
					<current_link_gen>1</current_link_gen>
				</pcie_gen>
				<link_widths>
					<max_link_width>16x</max_link_width>
					<current_link_width>{lanes}x</current_link_width>
				</link_widths>
			</pci_gpu_link_info>
		</pci>
{clocks}
		<fb_memory_usage>
			<total>81559 MiB</total>
			<reserved>551 MiB</reserved>
			<used>{used} MiB</used>
			<free>{free} MiB</free>
		</fb_memory_usage>
		<bar1_memory_usage>
			<total>131072 MiB</total>
			<used>1 MiB</used>
			<free>131071 MiB</free>
		</bar1_memory_usage>
		<compute_mode>{mode}</compute_mode>
		<ecc_mode>
			<current_ecc>Enabled</current_ecc>
			<pending_ecc>Enabled</pending_ecc>
		</ecc_mode>
{errors}
		<temperature>
			<gpu_temp>{heat} C</gpu_temp>
			<gpu_temp_tlimit>54 C</gpu_temp_tlimit>
		</temperature>
{power}
		<fabric>
			<state>{fabric}</state>
			<status>{fabric_status}</status>
		</fabric>
		<processes>{processes}
		</processes>
		<accounted_processes>
		</accounted_processes>
	</gpu>
"""

CLOCKS = """\
		<clocks_event_reasons>
			<clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
			<clocks_event_reason_sw_power_cap>Not Active</clocks_event_reason_sw_power_cap>
			<clocks_event_reason_hw_slowdown>{slow}</clocks_event_reason_hw_slowdown>
			<clocks_event_reason_hw_thermal_slowdown>{slow}</clocks_event_reason_hw_thermal_slowdown>
		</clocks_event_reasons>"""
ERRORS = """\
		<ecc_errors>
			<volatile>
				<sram_correctable>0</sram_correctable>
				<sram_uncorrectable_parity>0</sram_uncorrectable_parity>
				<sram_uncorrectable_secded>0</sram_uncorrectable_secded>
				<dram_correctable>3</dram_correctable>
				<dram_uncorrectable>{errors}</dram_uncorrectable>
			</volatile>
			<aggregate>
				<dram_correctable>3</dram_correctable>
				<dram_uncorrectable>{errors}</dram_uncorrectable>
				<sram_threshold_exceeded>No</sram_threshold_exceeded>
			</aggregate>
		</ecc_errors>
		<remapped_rows>
			<remapped_row_corr>0</remapped_row_corr>
			<remapped_row_unc>{errors}</remapped_row_unc>
			<remapped_row_pending>{pending}</remapped_row_pending>
			<remapped_row_failure>{failed}</remapped_row_failure>
		</remapped_rows>"""
POWER = """\
		<gpu_power_readings>
			<power_state>P0</power_state>
			<power_draw>71.88 W</power_draw>
			<current_power_limit>{watts}.00 W</current_power_limit>
			<requested_power_limit>{watts}.00 W</requested_power_limit>
			<default_power_limit>700.00 W</default_power_limit>
			<max_power_limit>700.00 W</max_power_limit>
		</gpu_power_readings>"""
PROCESS = """
			<process_info>
				<gpu_instance_id>N/A</gpu_instance_id>
				<compute_instance_id>N/A</compute_instance_id>
				<pid>{pid}</pid>
				<type>C</type>
				<process_name>/usr/bin/python3 -m another_job</process_name>
				<used_memory>{used} MiB</used_memory>
			</process_info>"""

OLD_CLOCKS = """\
		<clocks_throttle_reasons>
			<clocks_throttle_reason_gpu_idle>Not Active</clocks_throttle_reason_gpu_idle>
			<clocks_throttle_reason_hw_slowdown>{slow}</clocks_throttle_reason_hw_slowdown>
		</clocks_throttle_reasons>"""
OLD_ERRORS = """\
		<ecc_errors>
			<volatile>
				<single_bit><total>0</total></single_bit>
				<double_bit><device_memory>{errors}</device_memory><total>{errors}</total></double_bit>
			</volatile>
			<aggregate>
				<double_bit><total>{errors}</total></double_bit>
			</aggregate>
		</ecc_errors>
		<retired_pages>
			<pending_retirement>{pending}</pending_retirement>
		</retired_pages>
		<remapped_rows>N/A</remapped_rows>"""
OLD_POWER = """\
		<power_readings>
			<power_limit>{watts}.00 W</power_limit>
			<default_power_limit>700.00 W</default_power_limit>
		</power_readings>"""

HEALTHY = {
    **{"name": "NVIDIA H100 80GB HBM3", "persistence": "Enabled", "mig": "Disabled"},
    **{"reset": "No", "lanes": 16, "used": 1, "free": 81007, "mode": "Default", "heat": 31},
    **{"fabric": "Completed", "fabric_status": "Success", "processes": "", "slow": "Not Active"},
    **{"errors": 0, "pending": "No", "failed": "No", "watts": 700},
}


def query(gpus: Sequence[dict[str, object]], cuda: str = "12.4", old: bool = False) -> str:
    """The output of `nvidia-smi -q -x`.

    Args:
        gpus: What differs from `HEALTHY` in each.
        cuda: Newest CUDA of the driver.
        old: In the format of driver 525.
    """
    parts = (OLD_CLOCKS, OLD_ERRORS, OLD_POWER) if old else (CLOCKS, ERRORS, POWER)
    entries = []
    for index, changes in enumerate(gpus):
        values = {**HEALTHY, "index": index, "bus": f"{0x1B + index:02X}", **changes}
        clocks, errors, power = (part.format(**values) for part in parts)
        entries.append(GPU.format(**{**values, "errors": errors}, clocks=clocks, power=power))
    return (
        '<?xml version="1.0" ?>\n'
        '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n'
        "<nvidia_smi_log>\n"
        "	<timestamp>Fri Feb 14 10:00:00 2025</timestamp>\n"
        "	<driver_version>550.54.15</driver_version>\n"
        f"	<cuda_version>{cuda}</cuda_version>\n"
        f"	<attached_gpus>{len(gpus)}</attached_gpus>\n"
        f"{''.join(entries)}</nvidia_smi_log>\n"
    )


def topology(links: Sequence[Sequence[str]]) -> str:
    """The output of `nvidia-smi topo -m`: rows of links, with a network card as on real hosts."""
    names = [f"GPU{index}" for index in range(len(links))]
    header = "\t".join(["", *names, "NIC0", "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])
    rows = [
        "\t".join([name, *row, "NODE", "0-47,96-143", "0", "", "N/A"])
        for name, row in zip(names, links, strict=True)
    ]
    nic = "\t".join(["NIC0", *["NODE"] * len(links), " X "])
    return "\n".join([f"\x1b[4m{header}\x1b[0m", *rows, nic, "", "Legend:", "", "  X    = Self"])
