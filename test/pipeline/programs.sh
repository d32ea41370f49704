# programs.sh: sourced after clusters.sh.  Real consumers of a replica: Kafka and
# Debezium's connector as processes of their own, and a client of npm's.
#
# They come from Maven's and npm's registries, once, into TSYNC_CACHE: about 70 MB.
# fetch_kafka and fetch_client say by name what can't be had, and are false then.

PIPELINE=$TSYNC_ROOT/test/pipeline
if [ "$(id -u)" = 0 ]; then pipeline_cache=/var/cache/tablesync; else pipeline_cache=${XDG_CACHE_HOME:-$HOME/.cache}/tablesync; fi
pipeline_cache=${TSYNC_CACHE:-$pipeline_cache}
pipeline_started=    # programs of start_program
broker_port= controller_port= rest_port=

# has_program name package: installs it on Debian
has_program() {
    command -v "$1" >/dev/null || {
        { command -v apt-get && as_root timeout 100 apt-get update -qq &&
            as_root env DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends "$2"; } >>"$TSYNC_WORK/apt.log" 2>&1
        command -v "$1" >/dev/null
    }
}

# The folder of what a list of versions names.
folder_of() { echo "$pipeline_cache/pipeline-$(sha256sum "$1" | cut -c1-12)"; }

skipped() {
    echo "$1: skipped, $2"
    return 1
}

fetch_kafka() {
    local jars
    jars=$(folder_of "$PIPELINE/pom.xml")
    has_program java default-jre-headless || skipped "Kafka and Debezium" "there is no java" || return 1
    [ "$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')" -ge 17 ] || skipped "Kafka and Debezium" "java is older than 17" || return 1
    JAVA_CLASSES="$jars/*"    # java itself looks for them
    [ ! -e "$jars/complete" ] || return 0
    has_program mvn maven || skipped "Kafka and Debezium" "there is no mvn" || return 1
    echo "fetching Kafka and Debezium"
    rm -rf "$jars" "$jars.new"
    mkdir -p "$jars.new"
    timeout 300 mvn -q -B -f "$PIPELINE/pom.xml" -Dmaven.repo.local="$TSYNC_WORK/maven" \
        org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$jars.new" >"$TSYNC_WORK/maven.log" 2>&1 ||
        { rm -rf "$jars.new" && skipped "Kafka and Debezium" "Maven's registry can't be reached"; } || return 1
    rm -rf "$TSYNC_WORK/maven"
    (cd "$jars.new" && sha256sum --quiet -c "$PIPELINE/jars.sha256") || { echo "Kafka and Debezium: files are not those of jars.sha256"; exit 1; }
    touch "$jars.new/complete"
    mv "$jars.new" "$jars"
}

fetch_client() {
    local folder
    folder=$(folder_of "$PIPELINE/client/package-lock.json")
    has_program node nodejs || skipped "pg-logical-replication" "there is no node" || return 1
    [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 17 ] || skipped "pg-logical-replication" "node is older than 17" || return 1
    export NODE_PATH=$folder/node_modules
    [ ! -e "$folder/complete" ] || return 0
    has_program npm npm || skipped "pg-logical-replication" "there is no npm" || return 1
    echo "fetching pg-logical-replication"
    rm -rf "$folder" "$folder.new"
    mkdir -p "$folder.new"
    cp "$PIPELINE"/client/package*.json "$folder.new/"
    timeout 120 npm ci --prefix "$folder.new" --cache "$TSYNC_WORK/npm" --ignore-scripts --no-audit --no-fund >"$TSYNC_WORK/npm.log" 2>&1 ||
        { rm -rf "$folder.new" && skipped "pg-logical-replication" "npm's registry can't be reached"; } || return 1
    touch "$folder.new/complete"
    mv "$folder.new" "$folder"
}

# configure name: a file of properties of this folder, with its words put in
configure() {
    sed -e "s|@WORK@|$TSYNC_WORK|g; s|@BROKER_PORT@|$broker_port|g; s|@CONTROLLER_PORT@|$controller_port|g" \
        -e "s|@REST_PORT@|$rest_port|g; s|@TARGET_PORT@|$target_port|g" "$PIPELINE/$1.properties" >"$TSYNC_WORK/$1.properties"
    chmod 644 "$TSYNC_WORK/$1.properties"
}

# start_program name megabytes class [argument ..]: its pid is in <name>.pid, what it prints in <name>.out
start_program() {
    local name=$1 megabytes=$2
    shift 2
    rm -f "$TSYNC_WORK/$name.pid"
    # shellcheck disable=SC2016
    as_user sh -c 'echo $$ >"$1/$2.pid"; out=$1/$2.out; err=$1/$2.log; shift 2; exec "$@" >>"$out" 2>>"$err"' - "$TSYNC_WORK" "$name" \
        java "-Xmx${megabytes}m" -XX:TieredStopAtLevel=1 -XX:-UsePerfData "-Dlog4j2.configurationFile=$TSYNC_WORK/log4j2.properties" -cp "$JAVA_CLASSES" "$@" </dev/null >/dev/null 2>&1 &
    disown
    for _ in $(seq 50); do
        [ ! -s "$TSYNC_WORK/$name.pid" ] || break
        sleep 0.1
    done
    case " $pipeline_started " in *" $name "*) ;; *) pipeline_started="$name $pipeline_started" ;; esac
}

# stop_program name [signal]
stop_program() {
    local pid
    pid=$(cat "$TSYNC_WORK/$1.pid" 2>/dev/null) || return 0
    as_user kill "-${2:-TERM}" "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        as_user kill -0 "$pid" 2>/dev/null || { rm -f "$TSYNC_WORK/$1.pid"; return 0; }
        sleep 0.1
    done
    as_user kill -KILL "$pid" 2>/dev/null || true
}

stop_programs() {
    local name
    for name in $pipeline_started; do stop_program "$name" KILL; done
}

start_broker() {
    local id
    broker_port=$(free_port) controller_port=$(free_port)
    configure broker
    configure log4j2
    id=$(as_user java -cp "$JAVA_CLASSES" kafka.tools.StorageTool random-uuid 2>/dev/null)
    as_user java -cp "$JAVA_CLASSES" kafka.tools.StorageTool format -t "$id" -c "$TSYNC_WORK/broker.properties" >"$TSYNC_WORK/format.log" 2>&1
    start_program broker 512 kafka.Kafka "$TSYNC_WORK/broker.properties"
    for _ in $(seq 120); do
        ! (: >"/dev/tcp/127.0.0.1/$broker_port") 2>/dev/null || return 0
        sleep 0.5
    done
    echo "the broker does not start"
    return 1
}

# Kafka Connect, with Debezium's connector.
start_connector() {
    rest_port=$(free_port)
    configure worker
    configure connector
    start_program connector 512 org.apache.kafka.connect.cli.ConnectStandalone "$TSYNC_WORK/worker.properties" "$TSYNC_WORK/connector.properties"
}

# A consumer of all topics of the connector: lines of key, tab, value in consumer.out.
start_consumer() {
    echo metadata.max.age.ms=1000 >"$TSYNC_WORK/consumer.properties"
    chmod 644 "$TSYNC_WORK/consumer.properties"
    start_program consumer 256 org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "127.0.0.1:$broker_port" --include 'shop\..*' \
        --from-beginning --command-config "$TSYNC_WORK/consumer.properties" --formatter-property print.key=true
}

# At the target: what is published, and a role that may read it and nothing else.
prepare_publication() {
    target_admin_sql <<'SQL'
CREATE ROLE debezium LOGIN REPLICATION PASSWORD 'debezium';
GRANT SELECT ON media TO debezium;
ALTER TABLE media REPLICA IDENTITY FULL;
CREATE PUBLICATION pipeline FOR TABLE media;
SQL
}

events() { "$PIPELINE/events.pl" "$@"; }
