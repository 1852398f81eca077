[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && /usr/bin/python3 -c 'import pika' 2>/dev/null || exit 127
export RABBITMQ_MNESIA_BASE=$PWD/m RABBITMQ_LOG_BASE=$PWD/l RABBITMQ_NODENAME=r@localhost RABBITMQ_NODE_PORT=15672 RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_DIST_PORT=15674 ERL_EPMD_PORT=15673 ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_CONFIG_FILE=$PWD/none RABBITMQ_ENABLED_PLUGINS_FILE=$PWD/plugins RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2" RABBITMQ_FEATURE_FLAGS_FILE=$PWD/flags
mkdir -p m l
cat > c.py <<'P'
import pika, threading, time, hashlib
par = pika.ConnectionParameters('127.0.0.1', 15672, heartbeat=0)
for i in range(300):
    try: pika.BlockingConnection(par).close(); break
    except Exception: time.sleep(.1)
got = []
def consume():
    c = pika.BlockingConnection(par); ch = c.channel(); ch.basic_qos(prefetch_count=10)
    for m, p, b in ch.consume('q'):
        got.append(b); ch.basic_ack(m.delivery_tag)
        if len(got) == 400: break
    ch.cancel(); c.close()
c = pika.BlockingConnection(par); ch = c.channel(); ch.queue_declare('q', durable=True); ch.confirm_delivery()
t = threading.Thread(target=consume); t.start()
for i in range(400):
    ch.basic_publish('', 'q', b'm%d' % i, pika.BasicProperties(delivery_mode=2)); time.sleep(.005)
t.join(); c.close()
print(len(got), hashlib.md5(b' '.join(got)).hexdigest())
P
sh /usr/lib/rabbitmq/bin/rabbitmq-server > log 2>&1 & R=$!
/usr/bin/python3 c.py
kill $R; wait $R; echo $?
epmd -port 15673 -kill >/dev/null 2>&1
