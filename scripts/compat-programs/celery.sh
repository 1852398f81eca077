/usr/bin/python3 -c "import celery" 2>/dev/null || exit 127
cat > t.py <<T
from celery import Celery
a=Celery('t',broker='filesystem://',backend='file://'+__import__('os').getcwd()+'/r')
a.conf.broker_transport_options={'data_folder_in':'q','data_folder_out':'q','control_folder':'ctl'}
@a.task
def f(k):
    s=0
    for i in range(200000): s=(s*31+i*k)%1000003
    return s
T
mkdir q r ctl; cat > c.py <<T
from t import f
r=[f.delay(k) for k in range(60)]
print(sum(x.get(timeout=100) for x in r))
T
set -m; C_FORCE_ROOT=1 /usr/bin/python3 -m celery -A t worker -c 2 >w.log 2>&1 & W=$!
/usr/bin/python3 c.py 2>e; kill $W; wait $W; echo $?
