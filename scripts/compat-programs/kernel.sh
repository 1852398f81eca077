/usr/bin/python3 -c "import ipykernel, jupyter_client" 2>/dev/null || exit 127
cat > a.py <<T
from jupyter_client.manager import KernelManager
import sys
m=KernelManager(kernel_name='python3'); m.start_kernel(); c=m.client(); c.start_channels(); c.wait_for_ready(timeout=60)
def ex(s):
    o=[]
    c.execute_interactive(s,timeout=100,output_hook=lambda q:o.append(q['content'].get('text','')))
    return ''.join(o)
ex('s=1')
for k in range(20): print(ex('for i in range(1,600000): s=(s*31+i)%1000003\nprint(s)').strip(),flush=True)
c.stop_channels(); m.shutdown_kernel()
T
/usr/bin/python3 a.py 2>e
